"""Plain eager calls on the CPU, which go straight to the compiled library.

Torch's dispatcher, and a Function that torch.func understands, would cost more than the kernel on small tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from puredrop._backend import library
from puredrop._torch import is_view, plain_checks
from puredrop.ops import _operator
from puredrop.ops._arguments import Place
from puredrop.ops._kernel import DROPOUT, run
from puredrop.rng import Key

__all__ = ["dropout", "dropout_again", "is_plain", "may_write", "needs_gradient", "plain_apply", "transparent"]

_TYPES = (Tensor, torch.nn.Parameter)

_is_compiling = torch.compiler.is_compiling
_dispatch_modes: Callable[[], int]
_function_modes: Callable[[], int]
_transforms: Callable[[], bool]
_tracer: Callable[[], Any]
_profiler: Callable[[], bool]
_levels: dict[str, int]
_level: str


def _bind(tensor: Tensor) -> bool:
    """Bind the checks of `is_plain` at its first call, since every call asks them; then answer for `_has_storage`."""
    global _has_storage, _dispatch_modes, _function_modes, _transforms, _tracer, _profiler, _levels, _level
    (_has_storage, _dispatch_modes, _function_modes, _transforms, _tracer, _profiler, _levels, _level) = plain_checks()
    return _has_storage(tensor)


_has_storage: Callable[[Tensor], bool] = _bind  # sparse tensors and those of a transform have none


class _Transparent(threading.local):
    """Number of a thread's open function modes that ignore our operators, which need not go through them."""

    modes = 0


transparent = _Transparent()


def is_plain(tensor: Tensor) -> bool:
    """Return whether the library may read a tensor's memory without a mode, transform or tracer missing the call."""
    return (
        not _is_compiling()
        and type(tensor) in _TYPES
        and tensor.is_cpu
        and _has_storage(tensor)
        and not tensor.is_neg()
        and not _dispatch_modes()
        and (not _function_modes() or _function_modes() == transparent.modes)
        and not _transforms()
        and not _tracer()
        and not _profiler()
        and _levels[_level] < 0
        and library() is not None
    )


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return a Function's `apply` without torch's check for transforms, which `is_plain` has made.

    Torch's check costs 2 us, as much as the kernel on 10 000 elements.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def may_write(input: Tensor) -> bool:
    """Return whether autograd lets a Function write into its input.

    Torch checks that only after the Function has written. A leaf, or a view of a leaf, goes to torch's own in-place
    copy, which refuses it or handles it.
    """
    return not needs_gradient(input) or not (input.is_leaf or is_view(input))


def dropout(input: Tensor, key: int, p: float, place: Place, inplace: bool = False) -> Tensor:
    """Drop elements of a plain tensor, differentiable any number of times.

    Args:
        input: float tensor.
        key: number below 2^64.
        p: drop probability in [0, 1].
        place: place of the input in its logical tensor.
        inplace: write the result into the input.

    Returns:
        A new tensor like the input, or the input.
    """
    if not (input.requires_grad and torch.is_grad_enabled()):
        return run(DROPOUT, input, key, p, place, None, None, inplace)
    # Ids could change before backward; only saved tensors notice that.
    if place.sample_ids is None and (not inplace or may_write(input)):
        output: Tensor = _apply_dropout(input, key, p, place, inplace)
        return output
    output = _watched(input, key, p, place)
    return input.copy_(output) if inplace else output


def dropout_again(gradient: Tensor, key: int, p: float, place: Place) -> Tensor:
    """Apply the same mask to a gradient, plain or not."""
    return (dropout if is_plain(gradient) else _watched)(gradient, key, p, place)


def _watched(input: Tensor, key: int, p: float, place: Place) -> Tensor:
    rate = torch.scalar_tensor(p, dtype=torch.float64, device="cpu")
    return _operator.dropout(input, Key(key).tensor(input.device), rate, place)


class _Dropout(torch.autograd.Function):
    """Store key and rate alone; backward draws the mask again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, key: int, p: float, place: Place, inplace: bool) -> Tensor:
        ctx.call = (key, p, place)
        if inplace:
            ctx.mark_dirty(input)
        return run(DROPOUT, input, key, p, place, None, None, inplace)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return dropout_again(gradients[0], *ctx.call), None, None, None, None


_apply_dropout = plain_apply(_Dropout)
