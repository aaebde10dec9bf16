"""Dropout done right for PyTorch: every mask a pure function of (seed, site, step, sample, position).

The functions and classes listed in `__all__` are public, as are those of the modules `functional`, `nn`, `schedules`
and `testing`; all other modules are internal. `puredrop --help` lists the commands.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib.metadata import version as _version

from puredrop import functional, nn, schedules
from puredrop._backend import backend
from puredrop.conversion import convert, revert
from puredrop.ensemble import DropoutEnsemble, Prediction
from puredrop.functional import keep_mask
from puredrop.inspection import Site, sites
from puredrop.ops import Window
from puredrop.pinning import UnpinnedWarning, reproducible
from puredrop.rng import Key
from puredrop.thinning import batchwise

if _typing.TYPE_CHECKING:
    from puredrop import testing
    from puredrop.explanation import explain
    from puredrop.linting import check
    from puredrop.training_watch import WatchWarning, watch

__version__ = _version("puredrop")

__all__ = [
    "DropoutEnsemble",
    "Key",
    "Prediction",
    "Site",
    "UnpinnedWarning",
    "WatchWarning",
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
    "testing",
    "watch",
]

_LAZY = {
    "check": "puredrop.linting",
    "explain": "puredrop.explanation",  # takes 45 ms to load
    "testing": "puredrop.testing",
    "WatchWarning": "puredrop.training_watch",
    "watch": "puredrop.training_watch",
}
_COMMANDS = {"compare": "`puredrop compare`", "predict": "`puredrop predict`, or DropoutEnsemble(model).predict(x)"}


def __getattr__(name: str) -> _typing.Any:
    """Load some names at first use; for names that users guess, say where the thing is."""
    if name in _LAZY:
        module = _import_module(_LAZY[name])
        return module if name == "testing" else getattr(module, name)
    places = [f"{module.__name__}.{name}" for module in (functional, nn) if name in module.__all__]
    places += [f"the command {_COMMANDS[name]}"] if name in _COMMANDS else []
    advice = f"; use {places[0]}" if places else ""
    raise AttributeError(f"module 'puredrop' has no attribute {name!r}{advice}")


def __dir__() -> list[str]:
    return sorted(__all__)
