"""Wrappers around modules: those of torch.compile, DDP, DataParallel, FSDP 1 and checkpointing."""

from __future__ import annotations

import torch
from torch.nn import Module

from puredrop._torch import WRAPPERS, children

__all__ = ["unwrapped_path", "wrapped"]


def wrapped(module: Module) -> Module | None:
    """Return the module that a wrapper holds; None if the module is no wrapper."""
    held = children(module)
    if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
        return held["module"]
    return next((held[name] for name in WRAPPERS if name in held), None)


def unwrapped_path(path: str) -> str:
    """Return a module's path without the names that wrappers insert."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)
