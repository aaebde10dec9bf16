"""Dropout for self-normalising networks: dropped elements take the value at which SELU saturates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from puredrop import ops
from puredrop.functional.element import passes
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["alpha_dropout", "feature_alpha_dropout"]

# SELU's scale times its alpha, with torch's digits.
_SATURATION = 1.7580993408473766


def alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Set each element to SELU's negative saturation with probability p, then restore mean 0 and variance 1.

    Use it after `torch.nn.SELU`. A kept x becomes a (x + p s), a dropped one -a (1-p) s, with s = 1.7581 and
    a = ((1-p)(1 + p s^2))^(-1/2). Only inputs of mean 0 and variance 1 keep their mean and variance; the expectation of
    a single element is not its value.

    Args:
        input: float tensor of any shape.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop elements. With False, the default as in torch, the input itself is returned.
        inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`; zeros for p = 1.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).

    >>> alpha_dropout(torch.tensor([1.0, -1.0, 0.5, 2.0]), 0.5, True, key=Key(3)).round(decimals=3)
    tensor([-0.7790, -0.7790, -0.7790,  2.5520])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(alpha_dropout, locals())
    return _alpha(input, p, training, inplace, (), key, window, sample_ids, sample_dim)


def feature_alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Apply `alpha_dropout` to whole channels, with one decision per (sample, channel).

    Use it after a convolution and SELU, where neighbouring elements of a map carry the same information.

    Args:
        input: float tensor (N, C, ...) of two or more dimensions.
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        training: drop channels. With False, the default as in torch, the input itself is returned.
        inplace, key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `alpha_dropout`.

    Raises:
        RuntimeError: for an input without channels.
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).

    >>> feature_alpha_dropout(torch.zeros(1, 4, 2), 0.5, True, key=Key(3)).round(decimals=3)[0, :, 0]
    tensor([-0.7790, -0.7790, -0.7790,  0.7790])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(feature_alpha_dropout, locals())
    if ops.check_tensor("input", input) < 2 and training and input.numel():
        raise RuntimeError(
            f"feature_alpha_dropout: input has shape {tuple(input.shape)}; Feature dropout requires at least 2 "
            "dimensions in the input, (N, C, ...); to drop single elements use alpha_dropout"
        )
    return _alpha(input, p, training, inplace, range(2, input.dim()), key, window, sample_ids, sample_dim)


def _alpha(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    shared_dims: Iterable[int],
    key: Key | Tensor | KeySource | None,
    window: Window | None,
    sample_ids: Tensor | None,
    sample_dim: int,
) -> Tensor:
    rate = ops.as_rate(p)
    ops.check_tensor("input", input)
    place = ops.place_of(input.shape, shared_dims, window, sample_ids, sample_dim)
    if passes(input, rate, training):
        return input
    if not isinstance(rate, Tensor) and rate == 1 and not input.is_floating_point():
        return input.zero_() if inplace else torch.zeros_like(input)  # as torch; other rates raise below
    ops.check_dtype(input)
    if isinstance(rate, Tensor):
        rate = ops.readable_from("p", rate, input)
    # Dropping the distance from the saturation lets backward draw the mask again instead of storing it.
    keep = 1 - rate
    scale = (keep / (1 + rate * _SATURATION**2)) ** 0.5
    wide = input if input.dtype == torch.float64 else input.float()
    dropped = ops.dropout(wide + _SATURATION, key, rate, place)
    output = (dropped * scale - scale * _SATURATION).to(input.dtype)
    return input.copy_(output) if inplace else output
