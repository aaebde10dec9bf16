"""Paths of modules that do not change when a model is wrapped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import Module

from puredrop._torch import WRAPPERS, children
from puredrop.inspection.inputs import check_model

__all__ = ["named", "unwrapped"]


def unwrapped(model: Module) -> Module:
    """Return the module inside the wrappers of DDP, FSDP, torch.compile and checkpointing.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if it is a DataParallel, whose copies run at the same time in one process.
    """
    check_model(model)
    while True:
        if isinstance(model, torch.nn.DataParallel):
            raise ValueError("model is a DataParallel, whose copies share one state; use DistributedDataParallel")
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        held = children(model)
        inner = next((held[name] for name in WRAPPERS if name in held), None)
        if inner is None:
            return model
        model = inner


def named(root: Module) -> Iterator[tuple[str, Module]]:
    """Yield each module once with its first path, without wrappers and the names that they insert."""
    for path, module in root.named_modules():
        if not children(module).keys().isdisjoint(WRAPPERS):
            continue
        yield ".".join(part for part in path.split(".") if part not in WRAPPERS), module
