"""Dropout of single elements, and the keep mask on its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from puredrop import ops
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["dropout", "keep_mask"]


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero each element with probability p and scale the kept elements by 1/(1-p).

    The expectation of the output is the input. Use this function where you call `torch.nn.functional.dropout` and want
    a mask that a key determines. It differs from torch's function in three things: a dropped NaN or Inf becomes 0, the
    mask follows the logical index and not the memory order, and a NaN rate is an error.

    Args:
        input: float16, bfloat16, float32 or float64 tensor of any shape.
        p: drop probability in [0, 1]. A 0-d tensor is data: another value needs no recompilation.
        training: drop elements. Pass `self.training` in a module; with False the input itself is returned.
        inplace: write the result into the input and return the input.
        key: the key that determines the mask. None draws a key from torch's default generator of the input's device.
        shared_dims: dimensions over which elements share one decision (Keras has noise_shape = 1 there).
        window: position of this tensor in a larger logical tensor whose mask it shares.
        sample_ids: int64 tensor with one id per index along `sample_dim`. The mask follows the sample, not its
            position.
        sample_dim: the dimension along which samples lie.

    Returns:
        A tensor of the input's shape, dtype and memory format; the input itself in eval mode, for p = 0 and if empty.

    Raises:
        TypeError, ValueError: for an argument outside of the ranges above; the message names the argument.
        RuntimeError: for an input that is not floating point.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014).

    >>> x = torch.ones(8)
    >>> dropout(x, p=0.5, key=Key(3))
    tensor([0., 0., 0., 2., 2., 0., 2., 0.])
    >>> dropout(x[4:], p=0.5, key=Key(3), window=Window((8,), (4,)))  # the same mask, seen through a window
    tensor([2., 0., 2., 0.])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(dropout, locals())
    rate = ops.as_rate(p)
    ops.check_tensor("input", input)
    place = ops.place_of(input.shape, shared_dims, window, sample_ids, sample_dim)
    return drop(input, rate, training, inplace, key, place)


def warn(message: str, stacklevel: int) -> None:
    """Warn the user, except in code that a compiler traces, where a warning would break the graph.

    Args:
        message: text of the warning.
        stacklevel: as in `warnings.warn`, counted from the caller.
    """
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=stacklevel + 1)


def passes(input: Tensor, rate: float | Tensor, training: bool) -> bool:
    """Return whether a call returns its input unchanged; a rate in a tensor is not read, to avoid a synchronisation.

    Raises:
        TypeError: if training is not a bool.
    """
    if training is not True and training is not False:
        ops.check_switch("training", training)
    return not training or (not isinstance(rate, Tensor) and rate == 0) or input.numel() == 0


def kept(input: Tensor, rate: float | Tensor, key: Key | Tensor | KeySource | None, place: ops.Place) -> Tensor:
    """Return the keep mask of a tensor as bool, with size 1 in every shared dimension."""
    sizes = [1 if d in place.shared_dims else size for d, size in enumerate(input.shape)]
    # The operator drops elements of a tensor of ones, so every nonzero element was kept. The ones are contiguous: a
    # mask of 32 k elements is drawn 6 times as fast from them as from a single expanded one.
    return ops.dropout(torch.ones(sizes, device=input.device), key, rate, place).ne(0)


def drop(
    input: Tensor,
    rate: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | KeySource | None,
    place: ops.Place,
) -> Tensor:
    """Drop elements or channels, after the caller has checked its arguments and chosen the shared dimensions."""
    if passes(input, rate, training):
        return input
    if not isinstance(rate, Tensor) and rate == 1 and not input.is_floating_point():
        return input.zero_() if inplace else torch.zeros_like(input)  # as torch; other rates raise below
    ops.check_dtype(input)
    if inplace:
        ops.check_overlap(input)
    return ops.dropout(input, key, rate, place, inplace)


def keep_mask(
    shape: Sequence[int],
    p: float | Tensor,
    key: Key | Tensor | KeySource,
    *,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the mask that `dropout` applies to a tensor of the given shape under a key.

    Use the mask to apply one dropout decision to several tensors, or to see which units a key drops.

    Args:
        shape: sizes of the tensor.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        key: the key that determines the mask.
        shared_dims: dimensions over which elements share one decision.
        window: position of the tensor in a larger logical tensor whose mask it shares.
        sample_ids: int64 tensor with one id per index along `sample_dim`.
        sample_dim: the dimension along which samples lie.
        device: device of the mask; None is torch's default device.

    Returns:
        A bool tensor of the given shape, True where `dropout` keeps the element.

    Raises:
        TypeError, ValueError: for an argument outside of the ranges above; the message names the argument.

    >>> keep_mask((2, 4), 0.5, Key(3))
    tensor([[False, False, False,  True],
            [ True, False,  True, False]])
    """
    if ops.has_symbol(shape, key):
        return ops.recorded_call(keep_mask, locals())
    if key is None:
        raise TypeError("key is None; expected puredrop.Key or a 0-d int64 tensor: a mask is a function of its key")
    ones = torch.ones((), device=device).expand(ops.as_sizes("shape", shape))
    place = ops.place_of(ones.shape, shared_dims, window, sample_ids, sample_dim)
    return kept(ones, ops.as_rate(p), key, place).expand(ones.shape).clone()
