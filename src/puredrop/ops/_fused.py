"""Dropout in one pass with the operation before or after it; the composition of torch's functions is the specification.

The one pass serves plain eager calls on the CPU. A compiler fuses the composition itself, and transforms (torch.func,
forward mode) and second derivatives go through the composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puredrop.ops import _kernel
from puredrop.ops._arguments import Place
from puredrop.ops._eager import dropout_again, is_plain, needs_gradient, plain_apply

__all__ = ["bias_dropout_add", "fits", "gelu_dropout", "relu_dropout"]


def fits(place: Place, input: Tensor, *operands: Tensor) -> bool:
    """Return whether one pass serves these operands: plain, of one dtype, all broadcast to the input."""
    if place.sample_ids is not None and needs_gradient(input, *operands):
        return False  # ids could change before backward, which only saved tensors notice
    return is_plain(input) and all(
        is_plain(operand)
        and operand.dtype == input.dtype
        and (operand.shape == input.shape or _expands(operand.shape, input.shape))
        for operand in operands
    )


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _aligned(operand: Tensor, input: Tensor) -> Tensor:
    """Return an operand in the input's shape and, unless it is broadcast, with the input's strides."""
    if operand.shape != input.shape:
        operand = operand.expand(input.shape)
        if input.is_contiguous() and operand.stride(-1) == 1:
            return operand  # a bias: rows repeat
    return operand if operand.stride() == input.stride() else torch.empty_like(input).copy_(operand)


def _is_final(*gradients: Tensor) -> bool:
    """Return whether a backward is not differentiated again, so that the one pass may serve it."""
    return not torch.is_grad_enabled() and all(is_plain(gradient) for gradient in gradients)


def relu_dropout(input: Tensor, key: int, p: float, place: Place, inplace: bool) -> Tensor:
    """Compute `dropout(relu(input))` of a plain tensor in one pass; store the output for backward, as relu does."""
    if not needs_gradient(input):
        return _kernel.run(_kernel.RELU, input, key, p, place, inplace=inplace)
    output: Tensor = _apply_relu(input, key, p, place, inplace)
    return output


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, key: int, p: float, place: Place, inplace: bool) -> Tensor:
        ctx.call = (key, p, place)
        if inplace:
            ctx.mark_dirty(input)
        output = _kernel.run(_kernel.RELU, input, key, p, place, inplace=inplace)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (output,) = gradients, ctx.saved_tensors
        # Dropped and negative elements are 0 in the output, so no mask is drawn.
        if _is_final(gradient, output):
            key, p, _ = ctx.call
            result = _kernel.run(_kernel.RELU_BACKWARD, _aligned(gradient, output), key, p, Place(), second=output)
        else:
            result = dropout_again(gradient, *ctx.call).masked_fill(output <= 0, 0)
        return result, None, None, None, None


def gelu_dropout(input: Tensor, key: int, p: float, place: Place) -> Tensor:
    """Compute `dropout(gelu(input))` of a plain tensor in one pass; store the input for backward, as gelu does."""
    if not needs_gradient(input):
        return _kernel.run(_kernel.GELU, input, key, p, place)
    output: Tensor = _apply_gelu(input, key, p, place)
    return output


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, key: int, p: float, place: Place) -> Tensor:
        ctx.call = (key, p, place)
        ctx.save_for_backward(input)
        return _kernel.run(_kernel.GELU, input, key, p, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (input,) = gradients, ctx.saved_tensors
        if _is_final(gradient, input):
            key, p, place = ctx.call
            result = _kernel.run(_kernel.GELU_BACKWARD, _aligned(gradient, input), key, p, place, second=input)
        else:
            result = torch.ops.aten.gelu_backward(dropout_again(gradient, *ctx.call), input)
        return result, None, None, None


def bias_dropout_add(input: Tensor, bias: Tensor | None, residual: Tensor, key: int, p: float, place: Place) -> Tensor:
    """Compute `dropout(input + bias) + residual` of operands that `fits` accepts; store nothing of their size."""
    if not needs_gradient(input, bias, residual):
        return _add(input, bias, residual, key, p, place)
    output: Tensor = _apply_biasadd(input, bias, residual, key, p, place)
    return output


def _add(input: Tensor, bias: Tensor | None, residual: Tensor, key: int, p: float, place: Place) -> Tensor:
    second = _aligned(residual, input)
    if bias is None:
        return _kernel.run(_kernel.ADD, input, key, p, place, second=second)
    return _kernel.run(_kernel.BIAS_ADD, input, key, p, place, second=second, third=_aligned(bias, input))


class _BiasAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, bias: Tensor | None, residual: Tensor, key: int, p: float, place: Place
    ) -> Tensor:
        ctx.call = (key, p, place)
        ctx.shapes = (None if bias is None else bias.shape, residual.shape)
        return _add(input, bias, residual, key, p, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (bias, residual) = gradients, ctx.shapes
        through = dropout_again(gradient, *ctx.call) if any(ctx.needs_input_grad[:2]) else None
        return (
            through,
            through.sum_to_size(bias) if through is not None and ctx.needs_input_grad[1] else None,
            gradient.sum_to_size(residual) if ctx.needs_input_grad[2] else None,
            None,
            None,
            None,
        )


_apply_relu, _apply_gelu, _apply_biasadd = map(plain_apply, (_Relu, _Gelu, _BiasAdd))
