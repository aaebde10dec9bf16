"""Dropout of whole channels."""

from __future__ import annotations

from torch import Tensor

from puredrop import ops
from puredrop.functional.element import drop, warn
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["drop_channels", "dropout1d", "dropout2d", "dropout3d"]


def dropout1d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of sequences, with one decision per (sample, channel).

    Use it after a 1-D convolution: neighbouring positions carry the same information, so single elements are no loss.

    Args:
        input: float tensor (N, C, L) or (C, L).
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`.

    Raises:
        RuntimeError: for an input of another rank, as torch does.
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> import torch
    >>> dropout1d(torch.ones(1, 3, 4), p=0.5, key=Key(0))
    tensor([[[2., 2., 2., 2.],
             [2., 2., 2., 2.],
             [0., 0., 0., 0.]]])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(dropout1d, locals())
    rate = ops.as_rate(p)
    rank = ops.check_tensor("input", input)
    if rank not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {rank}D input. Expected (N, C, L) or, without a "
            "batch, (C, L); to drop single elements of any shape use dropout"
        )
    return drop_channels(input, rate, training, inplace, rank - 2, key, window, sample_ids, sample_dim)


def dropout2d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of maps, with one decision per (sample, channel).

    Use it after a 2-D convolution, whose maps `dropout` would only make noisy.

    Args:
        input: float tensor (N, C, H, W). A 3-D input is read as (N, C, L), as torch does, with torch's warning.
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`.

    Raises:
        RuntimeError: for an input without channels.
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> import torch
    >>> dropout2d(torch.ones(1, 3, 2, 2), p=0.5, key=Key(0)).mean(dim=(2, 3))
    tensor([[2., 2., 0.]])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(dropout2d, locals())
    rate = ops.as_rate(p)
    rank = ops.check_tensor("input", input)
    if rank not in (3, 4):
        _warn_of_rank("dropout2d", rank, "(N, C, H, W) or (N, C, L)")
    if rank == 3:
        warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is "
            "desired - input is interpreted as shape (N, C, L). To say so, use dropout1d; for one sample of shape "
            "(C, H, W) pass input.unsqueeze(0)",
            stacklevel=2,
        )
    return drop_channels(input, rate, training, inplace, 1, key, window, sample_ids, sample_dim)


def dropout3d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero whole channels of volumes, with one decision per (sample, channel).

    Use it after a 3-D convolution, whose maps `dropout` would only make noisy.

    Args:
        input: float tensor (N, C, D, H, W) or (C, D, H, W).
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        training, inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`.

    Raises:
        RuntimeError: for an input without channels.
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> import torch
    >>> dropout3d(torch.ones(1, 3, 2, 2, 2), p=0.5, key=Key(0)).mean(dim=(2, 3, 4))
    tensor([[2., 2., 0.]])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(dropout3d, locals())
    rate = ops.as_rate(p)
    rank = ops.check_tensor("input", input)
    if rank not in (4, 5):
        _warn_of_rank("dropout3d", rank, "(N, C, D, H, W) or (C, D, H, W)")
    return drop_channels(input, rate, training, inplace, 1 if rank == 5 else 0, key, window, sample_ids, sample_dim)


def drop_channels(
    input: Tensor,
    rate: float | Tensor,
    training: bool,
    inplace: bool,
    channel: int,
    key: Key | Tensor | KeySource | None,
    window: Window | None,
    sample_ids: Tensor | None,
    sample_dim: int,
) -> Tensor:
    """Drop channels: share one decision over all dimensions after the channel dimension."""
    rank = input.dim()
    if rank <= channel and training and input.numel() and (isinstance(rate, Tensor) or 0 < rate < 1):
        raise RuntimeError(
            f"Feature dropout requires at least 2 dimensions in the input, got shape {tuple(input.shape)}; "
            "to drop single elements use dropout"
        )
    place = ops.place_of(input.shape, range(channel + 1, rank), window, sample_ids, sample_dim)
    return drop(input, rate, training, inplace, key, place)


def _warn_of_rank(name: str, rank: int, expected: str) -> None:
    # torch's own first words, so that filters written for them go on working; the caller's caller is the user's line.
    warn(
        f"{name}: Received a {rank}-D input to {name}, which is deprecated and will result in an error in a future "
        f"release. Expected {expected}; to drop single elements of any shape use dropout",
        stacklevel=3,
    )
