"""Dropout in one pass with an activation before it, or with a Transformer block's bias and residual around it.

Each function equals its composition of torch's functions and `dropout` under the same key, rounded after every named
step. Plain eager code on the CPU takes one pass forward and one backward; elsewhere the composition itself runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop import ops
from puredrop.functional.element import passes
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Place, Window
from puredrop.rng import Key

__all__ = ["bias_dropout_add", "dropout_add", "gelu_dropout", "relu_dropout"]


def relu_dropout(
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
    """Compute `dropout(relu(input))` in one pass.

    Use it in a multilayer perceptron in place of the two calls. Backward needs the output alone, as relu's does.

    Args:
        input: float tensor of any shape.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop elements; with False only relu is applied.
        inplace: write the result into the input and return the input.
        key, shared_dims, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input; `relu(input)` in eval mode and for p = 0.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Dahl, Sainath, Hinton: Improving deep neural networks for LVCSR using rectified linear units and dropout
    (ICASSP 2013).

    >>> relu_dropout(torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0]), p=0.5, key=Key(3))
    tensor([0., 0., 0., 2., 2.])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(relu_dropout, locals(), functools.partial(torch.relu_ if inplace else torch.relu, input))
    rate, place = _rate_and_place(input, p, shared_dims, window, sample_ids, sample_dim)
    if inplace:
        ops.check_overlap(input)
    if passes(input, rate, training):
        return torch.relu_(input) if inplace else torch.relu(input)
    return ops.relu_dropout(input, key, rate, place, inplace)


def gelu_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    approximate: str = "none",
    key: Key | Tensor | KeySource | None = None,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Compute `dropout(gelu(input))` in one pass.

    Use it in a Transformer's feed-forward block in place of the two calls. Backward needs the input alone, as gelu's
    does. The one pass is accurate to a few ulp for large negative inputs too, where torch's 1 + erf loses its digits:
    the two differ by at most 4 ulp of the input, and there by more of the (tiny) output.

    Args:
        input: float tensor of any shape.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop elements; with False only gelu is applied.
        approximate: "none" or "tanh", as in `torch.nn.functional.gelu`; "tanh" takes two passes.
        key, shared_dims, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input; `gelu(input)` in eval mode and for p = 0.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`; ValueError for another approximation.

    Reference: Hendrycks, Gimpel: Gaussian error linear units (2016).

    >>> gelu_dropout(torch.ones(5), p=0.5, key=Key(3)).round(decimals=2)
    tensor([0.0000, 0.0000, 0.0000, 1.6800, 1.6800])
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(gelu_dropout, locals(), functools.partial(F.gelu, input, approximate=approximate))
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}; expected 'none' or 'tanh'")
    rate, place = _rate_and_place(input, p, shared_dims, window, sample_ids, sample_dim)
    if passes(input, rate, training):
        return F.gelu(input, approximate=approximate)
    return ops.gelu_dropout(input, key, rate, place, approximate)


def dropout_add(
    input: Tensor,
    residual: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | KeySource | None = None,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Compute `dropout(input) + residual` in one pass.

    Use it at the end of a residual branch. Backward needs no tensor of the input's size.

    Args:
        input: float tensor of any shape.
        residual: tensor to add after dropout, of a shape that broadcasts with the input's.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop elements; with False the two tensors are added.
        key, shared_dims, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A new tensor of the broadcast shape; `input + residual` in eval mode and for p = 0.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`.

    Reference: Vaswani et al.: Attention is all you need (NeurIPS 2017), section 5.4, residual dropout.

    >>> dropout_add(torch.ones(5), torch.full((5,), 10.0), p=0.5, key=Key(3))
    tensor([10., 10., 10., 12., 12.])
    """
    if not (isinstance(input, Tensor) and isinstance(residual, Tensor)) or input.is_nested:
        return special_call(dropout_add, locals(), functools.partial(torch.add, input, residual))
    ops.check_tensor("residual", residual)
    rate, place = _rate_and_place(input, p, shared_dims, window, sample_ids, sample_dim)
    if passes(input, rate, training):
        return input + residual
    return ops.bias_dropout_add(input, None, residual, key, rate, place)


def bias_dropout_add(
    input: Tensor,
    bias: Tensor,
    residual: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | KeySource | None = None,
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Compute `dropout(input + bias) + residual` in one pass.

    Use it after a linear layer without bias at the end of a residual branch. Backward needs no tensor of the input's
    size.

    Args:
        input: float tensor of any shape.
        bias: tensor to add before dropout, of a shape that broadcasts to the input's, such as (input.shape[-1],).
        residual: tensor to add after dropout, of a shape that broadcasts with the input's.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop elements; with False the three tensors are added.
        key, shared_dims, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A new tensor of the broadcast shape; `input + bias + residual` in eval mode and for p = 0.

    Raises:
        TypeError, ValueError, RuntimeError: as `dropout`; ValueError for a bias that would enlarge the input.

    Reference: Shoeybi et al.: Megatron-LM (2019), where bias, dropout and residual are one kernel.

    >>> bias_dropout_add(torch.zeros(5), torch.ones(5), torch.full((5,), 10.0), p=0.5, key=Key(3))
    tensor([10., 10., 10., 12., 12.])
    """
    if not (isinstance(input, Tensor) and isinstance(bias, Tensor) and isinstance(residual, Tensor)) or input.is_nested:
        return special_call(bias_dropout_add, locals(), functools.partial(_sum, input, bias, residual))
    ops.check_tensor("bias", bias)
    ops.check_tensor("residual", residual)
    rate, place = _rate_and_place(input, p, shared_dims, window, sample_ids, sample_dim)
    if torch.broadcast_shapes(bias.shape, input.shape) != input.shape:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; expected one that broadcasts to the input's, {tuple(input.shape)}"
        )
    if passes(input, rate, training):
        return input + bias + residual
    return ops.bias_dropout_add(input, bias, residual, key, rate, place)


def _rate_and_place(
    input: Tensor, p: float | Tensor, shared_dims: Iterable[int], *where: Any
) -> tuple[float | Tensor, Place]:
    """Check the arguments that every function here takes, also in a call that drops nothing."""
    rate = ops.as_rate(p)
    ops.check_tensor("input", input)
    ops.check_dtype(input)
    return rate, ops.place_of(input.shape, shared_dims, *where)


def _sum(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return input + bias + residual
