"""Names of modules that wrapping does not change."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import Module

__all__ = ["named", "unwrapped"]

# The name under which a wrapper holds what it wraps: torch.compile, FSDP 1, checkpoint_wrapper.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(model: Module) -> Module:
    """What the wrappers of DDP, FSDP, compile and checkpointing hold.

    Raises:
        TypeError: if it is no module.
        ValueError: for DataParallel, whose copies run at the same time in one process.
    """
    while isinstance(model, Module):
        if isinstance(model, torch.nn.DataParallel):
            raise ValueError("model is a DataParallel, whose copies share one state; use DistributedDataParallel")
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        inner = next((model._modules[name] for name in _WRAPPED if name in model._modules), None)
        if inner is None:
            return model
        model = inner
    raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")


def named(root: Module) -> Iterator[tuple[str, Module]]:
    """Each module once, by its first path on the root, without the names that wrappers put in; wrappers left out."""
    for path, module in root.named_modules():
        if any(name in module._modules for name in _WRAPPED):
            continue
        yield ".".join(part for part in path.split(".") if part not in _WRAPPED), module
