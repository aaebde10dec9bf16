"""Multiplicative Gaussian noise with the mean and the variance of dropout's noise."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from puredrop import ops
from puredrop.functional.element import passes
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["gaussian_dropout"]


def gaussian_dropout(
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
    """Multiply each element by 1 + sqrt(p/(1-p)) z, where z is standard normal.

    The expectation of the output is the input, and the noise has the variance of dropout at rate p. Use it in place of
    dropout where exact zeros are harmful. Factors are negative in 16 % of cases at p = 0.5, so signs may flip. The
    noise is drawn again in backward and not stored.

    Args:
        input: float tensor of any shape.
        p: rate of the dropout whose variance p/(1-p) the noise has, in [0, 1), a number or a 0-d tensor.
        training: add noise; with False the input itself is returned.
        inplace, key, shared_dims, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`.

    Raises:
        ValueError: for p = 1, where the variance is infinite; and as `dropout`.
        TypeError, RuntimeError: as `dropout`.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014), 10.

    >>> import torch
    >>> gaussian_dropout(torch.ones(4), 0.5, key=Key(3)).round(decimals=2)
    tensor([ 0.0900,  1.7600, -0.1900,  1.8100])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(gaussian_dropout, locals())
    rate = ops.as_rate(p)
    ops.check_tensor("input", input)
    place = ops.place_of(input.shape, shared_dims, window, sample_ids, sample_dim)
    if passes(input, rate, training):
        return input
    if not isinstance(rate, Tensor):
        ops.check_finite_noise(rate)
    ops.check_dtype(input)
    output = ops.gaussian_dropout(input, key, rate, place)
    return input.copy_(output) if inplace else output
