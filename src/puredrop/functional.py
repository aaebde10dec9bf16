"""Dropout as functions, with torch.nn.functional's semantics and explicit keys."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from puredrop import ops
from puredrop.ops import Window
from puredrop.rng import Key, as_key_tensor

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d", "keep_mask"]


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
    constant = None if isinstance(rate, Tensor) else rate
    _rank(input)
    place = ops.place_of(
        input.shape, shared_dims=shared_dims, window=window, sample_ids=sample_ids, sample_dim=sample_dim
    )
    if not training or constant == 0 or input.numel() == 0:
        return input
    if constant == 1 and not input.is_floating_point():
        return input.zero_() if inplace else torch.zeros_like(input)  # as torch; other rates raise just below
    ops.check_dtype(input)
    if not isinstance(rate, Tensor):
        rate = torch.scalar_tensor(rate, dtype=torch.float64)
    output = ops.dropout(input, as_key_tensor(key, input.device), rate, place)
    return input.copy_(output) if inplace else output


def dropout1d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of sequences: one decision per (sample, channel), shared over the length.

    Args:
        input: float tensor (N, C, L) or (C, L).
        p, training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        As `dropout`.

    Raises:
        RuntimeError: for an input of another rank, as torch does.
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> dropout1d(torch.ones(1, 3, 4), p=0.5, key=Key(0))
    tensor([[[2., 2., 2., 2.],
             [2., 2., 2., 2.],
             [0., 0., 0., 0.]]])
    """
    ops.as_rate(p)
    rank = _rank(input)
    if rank not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {rank}D input. Expected (N, C, L) or, without a "
            "batch, (C, L); to drop single elements of any shape use dropout"
        )
    return _drop_channels(input, p, training, inplace, rank - 2, key, window, sample_ids, sample_dim)


def dropout2d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of maps: one decision per (sample, channel), shared over all further dimensions.

    Args:
        input: float tensor (N, C, H, W); a 3-D one is (N, C, L) as in torch, with torch's warning.
        p, training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        As `dropout`.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`; RuntimeError for an input without channels.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).
    """
    ops.as_rate(p)
    rank = _rank(input)
    if rank not in (3, 4):
        _warn_of_rank("dropout2d", rank, "(N, C, H, W) or (N, C, L)")
    if rank == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is "
            "desired - input is interpreted as shape (N, C, L). To say so, use dropout1d; for one sample of shape "
            "(C, H, W) pass input.unsqueeze(0)",
            stacklevel=2,
        )
    return _drop_channels(input, p, training, inplace, 1, key, window, sample_ids, sample_dim)


def dropout3d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of volumes: one decision per (sample, channel), shared over the volume.

    Args:
        input: float tensor (N, C, D, H, W) or (C, D, H, W).
        p, training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        As `dropout`.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`; RuntimeError for an input without channels.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).
    """
    ops.as_rate(p)
    rank = _rank(input)
    if rank not in (4, 5):
        _warn_of_rank("dropout3d", rank, "(N, C, D, H, W) or (C, D, H, W)")
    return _drop_channels(input, p, training, inplace, 1 if rank == 5 else 0, key, window, sample_ids, sample_dim)


def _drop_channels(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    channel: int,
    key: Key | Tensor | None,
    window: Window | None,
    sample_ids: Tensor | None,
    sample_dim: int,
) -> Tensor:
    """`dropout` with one decision for all that lies beyond the channel dimension."""
    if input.dim() <= channel and training and (isinstance(p, Tensor) or 0 < p < 1):
        raise RuntimeError(
            f"Feature dropout requires at least 2 dimensions in the input, got shape {tuple(input.shape)}; "
            "to drop single elements use dropout"
        )
    beyond = range(channel + 1, input.dim())
    return dropout(
        input,
        p,
        training,
        inplace,
        key=key,
        shared_dims=beyond,
        window=window,
        sample_ids=sample_ids,
        sample_dim=sample_dim,
    )


def _rank(input: Tensor) -> int:
    if not isinstance(input, Tensor):
        raise TypeError(f"input is {type(input).__name__}; expected a torch.Tensor")
    return input.dim()


def _warn_of_rank(name: str, rank: int, expected: str) -> None:
    # torch's own first words, so that filters written for them go on working; the caller's caller is the user's line.
    warnings.warn(
        f"{name}: Received a {rank}-D input to {name}, which is deprecated and will result in an error in a future "
        f"release. Expected {expected}; to drop single elements of any shape use dropout",
        stacklevel=3,
    )


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
    # The operator drops elements of a tensor of ones: what is not 0 was kept, at any rate.
    ones = torch.ones((), device=device).expand(ops.as_sizes("shape", shape))
    rate = ops.as_rate(p)
    return dropout(
        ones,
        rate if isinstance(rate, Tensor) else torch.scalar_tensor(rate, dtype=torch.float64),
        key=key,
        shared_dims=shared_dims,
        window=window,
        sample_ids=sample_ids,
        sample_dim=sample_dim,
    ).ne(0)
