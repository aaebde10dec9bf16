"""Private names of torch that show which levels of torch.func have wrapped a tensor, and that step outside of them.

A newer or older torch may lack one: its first use then raises an error that names what is missing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from puredrop._torch import missing, transforms_active

__all__ = ["mapped_levels", "mapped_over", "outside_transforms"]


def outside_transforms() -> AbstractContextManager[Any]:
    """Return a context for calls that are no part of the transformed function, such as those on a model's own state."""
    if torch.compiler.is_compiling() or not transforms_active():
        return nullcontext()
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:
        path = "_functorch.pyfunctorch.temporarily_clear_interpreter_stack"
        raise missing(path, "a pinned model under torch.func") from None
    context: AbstractContextManager[Any] = temporarily_clear_interpreter_stack()
    return context


def mapped_levels(tensor: Tensor) -> dict[int, int]:
    """Return the levels of vmap at which a tensor is mapped, with the number of slices at each."""
    sizes: dict[int, int] = {}
    try:
        functorch = torch._C._functorch
        while functorch.is_functorch_wrapped_tensor(tensor):
            inner = functorch.get_unwrapped(tensor)
            if functorch.is_batchedtensor(tensor):
                sizes[functorch.maybe_get_level(tensor)] = inner.shape[functorch.maybe_get_bdim(tensor)]
            tensor = inner
    except AttributeError:
        raise missing("_C._functorch.get_unwrapped", "a pinned model under vmap") from None
    return sizes


def mapped_over(tensor: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Return a tensor whose first dimensions are mapped at levels of vmap, as if the user had mapped them."""
    try:
        for level in levels:
            tensor = torch._C._functorch._add_batch_dim(tensor, 0, level)
    except AttributeError:
        raise missing("_C._functorch._add_batch_dim", "a pinned model under vmap") from None
    return tensor
