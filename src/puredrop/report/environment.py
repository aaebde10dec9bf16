"""The versions and the machine that a page names."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Return the versions of what computes, the machine's architecture and torch's number of threads."""
    return {
        "puredrop": version("puredrop"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
