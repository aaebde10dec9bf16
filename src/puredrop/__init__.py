"""Dropout done right for PyTorch: every mask a pure function of (seed, site, step, sample, position)."""

from importlib.metadata import version

from puredrop import explain, functional, nn, schedules
from puredrop._backend import backend
from puredrop.batchwise import batchwise
from puredrop.check import check
from puredrop.convert import convert, revert
from puredrop.ensemble import DropoutEnsemble, Prediction
from puredrop.functional import keep_mask
from puredrop.ops import Window
from puredrop.reproducible import reproducible
from puredrop.rng import Key
from puredrop.sites import Site, sites

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
