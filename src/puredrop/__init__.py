"""Dropout done right for PyTorch: every mask a pure function of (seed, site, step, sample, position)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from puredrop import functional, nn, schedules
from puredrop._backend import backend
from puredrop.conversion import convert, revert
from puredrop.ensemble import DropoutEnsemble, Prediction
from puredrop.functional import keep_mask
from puredrop.inspection import Site, sites
from puredrop.linting import check
from puredrop.ops import Window
from puredrop.pinning import reproducible
from puredrop.rng import Key
from puredrop.thinning import batchwise

if TYPE_CHECKING:
    from puredrop.explanation import explain

__version__ = version("puredrop")

__all__ = [
    "DropoutEnsemble",
    "Key",
    "Prediction",
    "Site",
    "Window",
    "__version__",
    "backend",
    "batchwise",
    "check",
    "convert",
    "explain",
    "functional",
    "keep_mask",
    "nn",
    "reproducible",
    "revert",
    "schedules",
    "sites",
]


def __getattr__(name: str) -> Any:
    """`puredrop.explain`, loaded when it is first asked for: it takes 45 ms, a fifth of what the rest takes."""
    if name == "explain":
        return import_module("puredrop.explanation").explain
    raise AttributeError(f"module 'puredrop' has no attribute {name!r}")
