"""The versions and the machine that a page names."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

__all__ = ["environment", "machine_memory"]


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


def machine_memory() -> int | None:
    """Return the bytes of memory of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no such function
        return None
