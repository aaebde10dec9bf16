"""Dropout of single elements, and the mask itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from puredrop import ops
from puredrop.ops import Window
from puredrop.rng import Key

__all__ = ["dropout", "keep_mask"]


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero each element with probability p and scale the rest by 1/(1-p), so that the expectation is the input.

    Differs from torch's on purpose in three things: a dropped NaN or Inf is 0, masks follow the logical index and
    not the memory order, and a NaN rate is an error.

    Args:
        input: float16, bfloat16, float32 or float64 tensor of any shape.
        p: probability of a drop, in [0, 1]; as a 0-d tensor it is data, and a new value costs no recompilation.
        training: where False, the input itself is returned.
        inplace: write the result into the input and return that.
        key: what the mask is a function of; None draws one key from torch's default generator of the input's device.
        shared_dims: dimensions over which one decision is shared (Keras' noise_shape = 1 there).
        window: the larger logical tensor this one is a part of.
        sample_ids: int64 tensor, one id per index along sample_dim: the mask follows the sample, not its position.
        sample_dim: the dimension of the samples.

    Returns:
        A tensor like the input, of the same memory format; the input itself in eval mode, for p = 0 and when empty.

    Raises:
        TypeError, ValueError: for an argument outside what is said above; the message names it.
        RuntimeError: for an input that is not floating point.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014).

    >>> x = torch.ones(8)
    >>> dropout(x, p=0.5, key=Key(3))
    tensor([0., 0., 0., 2., 2., 0., 2., 0.])
    >>> dropout(x[4:], p=0.5, key=Key(3), window=Window((8,), (4,)))  # the same mask, seen through a window
    tensor([2., 0., 2., 0.])
    """
    rate = ops.as_rate(p)
    ops.check_tensor("input", input)
    place = ops.place_of(input.shape, shared_dims, window, sample_ids, sample_dim)
    return drop(input, rate, training, inplace, key, place)


def passes(input: Tensor, rate: float | Tensor, training: bool) -> bool:
    """Whether there is nothing to do; a rate of 0 in a tensor cannot be seen, and drops nothing all the same."""
    return not training or (not isinstance(rate, Tensor) and rate == 0) or input.numel() == 0


def kept(input: Tensor, rate: float | Tensor, key: Key | Tensor | None, place: ops.Place) -> Tensor:
    """Which elements of a tensor are kept: bool, with 1 in place of every shared dimension."""
    sizes = [1 if d in place.shared_dims else size for d, size in enumerate(input.shape)]
    # The operator drops elements of a tensor of ones: what is not 0 was kept, at any rate. Of ones that lie in a row,
    # of which a mask of 32 k elements is drawn 6 times as fast as of a single one that is expanded.
    return ops.dropout(torch.ones(sizes, device=input.device), key, rate, place).ne(0)


def drop(
    input: Tensor, rate: float | Tensor, training: bool, inplace: bool, key: Key | Tensor | None, place: ops.Place
) -> Tensor:
    """What dropout of elements and of channels is, once it is known which decisions are shared; arguments checked."""
    if passes(input, rate, training):
        return input
    if not isinstance(rate, Tensor) and rate == 1 and not input.is_floating_point():
        return input.zero_() if inplace else torch.zeros_like(input)  # as torch; other rates raise just below
    ops.check_dtype(input)
    if inplace:
        ops.check_overlap(input)
    return ops.dropout(input, key, rate, place, inplace)


def keep_mask(
    shape: Sequence[int],
    p: float | Tensor,
    key: Key | Tensor,
    *,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The mask itself: which elements of a tensor of some shape `dropout` keeps under a key.

    Args:
        shape: sizes of the tensor.
        p: probability of a drop, in [0, 1], a number or a 0-d tensor.
        key: what the mask is a function of.
        shared_dims, window, sample_ids, sample_dim: as in `functional.dropout`.
        device: where to put the mask; torch's default device if not given.

    Returns:
        bool tensor of the shape, True where kept.

    Raises:
        TypeError, ValueError: for an argument outside what is said above; the message names it.

    >>> keep_mask((2, 4), 0.5, Key(3))
    tensor([[False, False, False,  True],
            [ True, False,  True, False]])
    """
    if key is None:
        raise TypeError("key is None; expected puredrop.Key or a 0-d int64 tensor: a mask is a function of its key")
    ones = torch.ones((), device=device).expand(ops.as_sizes("shape", shape))
    place = ops.place_of(ones.shape, shared_dims, window, sample_ids, sample_dim)
    return kept(ones, ops.as_rate(p), key, place).expand(ones.shape).clone()
