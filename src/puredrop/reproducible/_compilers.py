"""What compilers are told, once a model is pinned; before that nobody need load them."""

from __future__ import annotations

import functools

import torch

from puredrop.reproducible import _sites
from puredrop.reproducible._forward import Forward

__all__ = ["tell_compilers"]


@functools.cache
def tell_compilers() -> None:
    """Leave a model's two hooks alone, and run what makes a site instead of following it.

    The hooks do nothing with tensors, and what they count would be constants of a program. A path is hashed, which no
    compiler can follow.
    """
    Forward.before = torch.compiler.disable(Forward.before)  # type: ignore[method-assign]
    Forward.after = torch.compiler.disable(Forward.after)  # type: ignore[method-assign]
    torch.compiler.assume_constant_result(_sites._make)  # marks it
