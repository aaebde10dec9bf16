"""Paths of modules that do not change when a model is wrapped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import Module

from puredrop._torch import WRAPPERS, children
from puredrop.inspection.inputs import check_model
from puredrop.inspection.wrappers import unwrapped_path, wrapped

__all__ = ["named", "unwrapped"]


def unwrapped(model: Module) -> Module:
    """Return the module inside the wrappers of DDP, FSDP, torch.compile and checkpointing.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if it is a DataParallel, whose copies run at the same time in one process.
    """
    check_model(model)
    while (inner := wrapped(model)) is not None:
        if isinstance(model, torch.nn.DataParallel):
            raise ValueError("model is a DataParallel, whose copies share one state; use DistributedDataParallel")
        model = inner
    return model


def named(root: Module) -> Iterator[tuple[str, Module]]:
    """Yield each module once with its first path, without wrappers and the names that they insert."""
    for path, module in root.named_modules():
        if not children(module).keys().isdisjoint(WRAPPERS):
            continue
        yield unwrapped_path(path), module
