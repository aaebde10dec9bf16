"""Errors of the command: one line on stderr, exit code 2."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from puredrop._text import printable

__all__ = ["STUDY", "fail", "missing"]

STUDY = ("jinja2", "pandas", "plotly", "pooch", "pyarrow", "rich", "safetensors", "scipy", "sklearn", "torchmetrics")
"""Packages of the extra `study`, by import name."""


def fail(command: str, message: str) -> int:
    """Print an error and return the exit code."""
    print(printable(f"puredrop {command}: error: {message}"), file=sys.stderr)
    return 2


def missing(command: str, packages: Sequence[str], extra: str = "study") -> str | None:
    """Return what to install where packages are missing; None where all are there."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{command} needs {', '.join(absent)}; install what it needs with: pip install 'puredrop[{extra}]'"
