"""Layers as functions on compacted weights: gather panels, multiply or convolve, scatter the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from puredrop.compact.buffers import Buffer
from puredrop.compact.kept import Kept
from puredrop.compact.panels import gather, scatter, shape_of

__all__ = ["LayerCall", "conv", "linear", "put", "take"]


_convolution: Any = torch.ops.aten.convolution.default
_convolution_backward: Any = torch.ops.aten.convolution_backward.default


class LayerCall(NamedTuple):
    """Description of one use of a layer whose input and output are (groups, rows, units, ...).

    Args:
        columns: the units that the input holds; None for all units.
        rows: the units that the output is to hold; None for all units.
        scale: factor that the input lacks; the panels are multiplied by it because they are smaller.
        buffers: memory for the panels, their gradient and the weight's gradient; None allocates.
        geometry: stride, padding and dilation of a convolution.
    """

    columns: Kept | None
    rows: Kept | None
    scale: float
    buffers: tuple[Buffer, Buffer, Buffer] | None = None
    geometry: tuple[Any, ...] = ()

    def buffer(self, number: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor from one of the buffers."""
        if self.buffers is None:
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        return self.buffers[number].tensor(shape, like)

    def panels(self, weight: Tensor, groups: int) -> Tensor:
        """Gather the weight's panels, (groups, units of the output, units of the input, ...)."""
        # Checked here because the library would read beyond a weight of other sizes.
        for name, kept, size in (("input", self.columns, weight.shape[1]), ("output", self.rows, weight.shape[0])):
            if kept is not None and kept.size != size:
                raise RuntimeError(f"shapes do not fit: a layer whose {name} has {size} units is used with {kept.size}")
        rows = self.rows or weight.shape[0]
        panels = self.buffer(0, shape_of(weight, groups, rows, self.columns), weight)
        return gather(weight.contiguous(), rows, self.columns, self.scale, panels)

    def weight_gradient(self, panels: Tensor, weight: Tensor) -> Tensor:
        """Return the weight's gradient from the gradient of its scaled panels."""
        rows = self.rows or weight.shape[0]
        return scatter(panels.to(weight.dtype), rows, self.columns, self.scale, self.buffer(2, weight.shape, weight))

    def biases(self, bias: Tensor, groups: int) -> Tensor:
        """Gather each group's bias, (groups, 1, units of the output)."""
        if self.rows is None:
            return bias.expand(groups, 1, -1)
        panels = torch.empty(groups, self.rows.width, 1, dtype=bias.dtype, device=bias.device)
        return gather(bias.contiguous().unsqueeze(1), self.rows, None, 1.0, panels).transpose(1, 2)

    def bias_gradient(self, sums: Tensor, bias: Tensor) -> Tensor:
        """Return the bias's gradient from (groups, units of the output)."""
        if self.rows is None:
            return sums.sum(0).to(bias.dtype)
        dense = torch.empty(len(bias), 1, dtype=bias.dtype, device=bias.device)
        return scatter(sums.to(bias.dtype).unsqueeze(2), self.rows, None, 1.0, dense).squeeze(1)


class _CompactLinear(torch.autograd.Function):
    """Compute `y = x W^T + b` with the rows and columns of W that each group keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: LayerCall) -> Tensor:
        panels = call.panels(weight, len(x)).to(x.dtype)
        ctx.call = call
        ctx.save_for_backward(x, weight, bias, panels)
        if bias is None:
            return torch.bmm(x, panels.transpose(1, 2))
        return torch.baddbmm(call.biases(bias, len(x)).to(x.dtype), x, panels.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, panels = ctx.saved_tensors
        call: LayerCall = ctx.call
        gradient = gradient.contiguous()
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_input = torch.bmm(gradient, panels)
        if ctx.needs_input_grad[1]:
            buffer = call.buffer(1, panels.shape, panels)
            of_weight = call.weight_gradient(torch.bmm(gradient.transpose(1, 2), x, out=buffer), weight)
        if ctx.needs_input_grad[2]:
            of_bias = call.bias_gradient(gradient.sum(1), bias)
        return of_input, of_weight, of_bias, None


class _CompactConv(torch.autograd.Function):
    """Convolve with the output and input channels that each group keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: LayerCall) -> Tensor:
        panels = call.panels(weight, len(x)).to(x.dtype)
        ctx.call = call
        ctx.save_for_backward(x, weight, bias, panels)
        biases = [None] * len(x) if bias is None else call.biases(bias, len(x)).to(x.dtype).flatten(1)
        none = [0] * len(call.geometry[0])
        outputs = [
            _convolution(maps, panel, b, *call.geometry, False, none, 1)
            for maps, panel, b in zip(x, panels, biases, strict=True)
        ]
        return _stacked(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, panels = ctx.saved_tensors
        call: LayerCall = ctx.call
        needs = [*ctx.needs_input_grad[:2], False]
        none = [0] * len(call.geometry[0])
        gradients = [
            _convolution_backward(dy, maps, panel, None, *call.geometry, False, none, 1, needs)
            for dy, maps, panel in zip(gradient, x, panels, strict=True)
        ]
        of_input = of_weight = of_bias = None
        if needs[0]:
            of_input = _stacked([dx for dx, _, _ in gradients])
        if needs[1]:
            of_weight = call.weight_gradient(_stacked([dw.contiguous() for _, dw, _ in gradients]), weight)
        if ctx.needs_input_grad[2]:
            of_bias = call.bias_gradient(gradient.sum((1, *range(3, gradient.dim()))), bias)
        return of_input, of_weight, of_bias, None


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack tensors without copying where there is only one."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


class _Take(torch.autograd.Function):
    """Take the units that each group keeps from a dense tensor (groups, rows, units, ...), scaled."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, kept: Kept, scale: float) -> Tensor:
        ctx.kept, ctx.scale = kept, scale
        groups, rows = dense.shape[:2]
        flat = dense.contiguous().flatten(0, 1)
        panels = torch.empty(shape_of(flat, groups, rows, kept), dtype=dense.dtype, device=dense.device)
        return gather(flat, rows, kept, scale, panels, step=rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return put(gradient, ctx.kept, ctx.scale), None, None


class _Put(torch.autograd.Function):
    """Put packed values in their places in a dense tensor, scaled; 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Kept, scale: float) -> Tensor:
        ctx.kept, ctx.scale = kept, scale
        groups, rows, _, *inner = values.shape
        dense = torch.empty(groups * rows, kept.size, *inner, dtype=values.dtype, device=values.device)
        scatter(values.contiguous(), rows, kept, scale, dense, step=rows)
        return dense.view(groups, rows, kept.size, *inner)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return take(gradient, ctx.kept, ctx.scale), None, None


linear: Callable[..., Tensor] = _CompactLinear.apply
conv: Callable[..., Tensor] = _CompactConv.apply
take: Callable[..., Tensor] = _Take.apply
put: Callable[..., Tensor] = _Put.apply
