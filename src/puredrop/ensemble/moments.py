"""Mean and covariance of a net's output under all masks, carried through its layers without sampling.

Layers are exact in the first two moments where they are linear; a ReLU is so for a normal input. Full covariance costs
(rows, units, units) numbers a layer and is right where the diagonal one, which takes units for independent, is not.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn import Module

from puredrop import nn as ours
from puredrop._text import first_line
from puredrop.inspection.tracing import Tracer
from puredrop.nn.keyed import HasKey

__all__ = ["Covariance", "Moments", "carrier"]

Covariance = Literal["full", "diagonal"]

# Of exactly these classes: others that drop share, or keep a layout of their own.
_CHANNELS = tuple(getattr(library, f"Dropout{n}d") for library in (nn, ours) for n in (1, 2, 3))
_DROPOUTS = (nn.Dropout, ours.Dropout, *_CHANNELS)
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_TINY = 1e-12

Slope = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a model's output under all masks: what `DropoutEnsemble.moments` returns.

    Use it in place of sampling where a model consists of supported layers; all tensors are float64 on the CPU.

    Args:
        mean: mean output over masks, (rows, ...).
        variance: variance over masks, like the mean.
        covariance: covariance of a row's flattened outputs, (rows, outputs, outputs); None for covariance="diagonal".

    Reference: Wang and Manning: Fast dropout training (ICML 2013).
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor | None

    @staticmethod
    def joined(parts: Sequence[Moments]) -> Moments:
        """Return the moments of all rows from those of parts."""
        spreads = [part.covariance for part in parts if part.covariance is not None]
        mean, variance = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "variance"))
        return Moments(mean, variance, torch.cat(spreads) if spreads else None)


class _Value:
    """The mean of a tensor in the net, and its covariance over all flattened dimensions but the rows.

    Args:
        mean: (rows, ...).
        spread: (rows, n, n), or (rows, n) if diagonal; None where no decision has reached it.
        slope: the mean derivative by what it was computed from: (rows, k, n of that) -> (rows, k, n); None where it
            is the same.
    """

    def __init__(self, mean: Tensor, spread: Tensor | None, slope: Slope | None = None) -> None:
        self.mean = mean
        self.spread = spread
        self.slope = slope

    @property
    def is_full(self) -> bool:
        """Return whether the whole covariance is carried, not its diagonal."""
        return self.spread is not None and self.spread.dim() == 3

    @property
    def variance(self) -> Tensor:
        """The variance, in the shape of the mean."""
        assert self.spread is not None
        variance = self.spread.diagonal(dim1=1, dim2=2) if self.is_full else self.spread
        return variance.clamp_min(0).reshape(self.mean.shape)

    def linear(self, function: Callable[[Tensor], Tensor], squared: Callable[[Tensor], Tensor] | None) -> _Value:
        """Apply a linear function of one row's numbers.

        Args:
            function: with its constant.
            squared: the same of squared weights, without; None where it only moves numbers about.
        """
        mean = function(self.mean)
        if self.spread is None:
            return _Value(mean, None)
        if not self.is_full:
            moved = (squared or function)(self.variance)
            return _Value(mean, moved.flatten(1))
        constant, shape = function(torch.zeros_like(self.mean[:1])), self.mean.shape[1:]

        def slope(towards: Tensor) -> Tensor:
            return (function(towards.reshape(-1, *shape)) - constant).reshape(*towards.shape[:2], -1)

        return _Value(mean, slope(slope(self.spread).transpose(1, 2)), slope)

    def dropped(self, p: float, channels: bool) -> _Value:
        """Apply dropout, which adds variance that is uncorrelated between units, or between channels."""
        ratio = p / (1 - p)
        second = self.mean.square() if self.spread is None else self.mean.square() + self.variance
        if not self.is_full and channels and self.mean.dim() > 2:
            raise ValueError(
                "moments: dropout of channels makes a channel's numbers depend on each other; pass covariance='full'"
            )
        if not self.is_full:
            base = 0 if self.spread is None else self.spread
            return _Value(self.mean, base + ratio * second.flatten(1))
        assert self.spread is not None
        if not channels:
            return _Value(self.mean, self.spread + torch.diag_embed(ratio * second.flatten(1)))
        flat = self.mean.flatten(1)
        each = self.mean[0].numel() // self.mean.shape[1]
        same = torch.kron(torch.eye(self.mean.shape[1], dtype=flat.dtype), torch.ones(each, each, dtype=flat.dtype))
        return _Value(self.mean, self.spread + ratio * same * (self.spread + flat[:, :, None] * flat[:, None, :]))

    def relu(self) -> _Value:
        """Apply a ReLU, as if its input were normal.

        Reference: Frey and Hinton: Variational learning in nonlinear Gaussian belief networks (Neural Computation
            1999); the covariance to second order in the correlation.
        """
        if self.spread is None:
            return _Value(self.mean.relu(), None)
        deviation = self.variance.sqrt().clamp_min(_TINY)
        alpha = self.mean / deviation
        share = 0.5 * torch.special.erfc(-alpha / math.sqrt(2))
        density = torch.exp(-0.5 * alpha.square()) / math.sqrt(2 * math.pi)
        mean = self.mean * share + deviation * density
        second = (self.mean.square() + self.variance) * share + self.mean * deviation * density
        variance = (second - mean.square()).clamp_min(0).flatten(1)
        if not self.is_full:
            return _Value(mean, variance)
        a, b, s = share.flatten(1), density.flatten(1), deviation.flatten(1)
        spread = self.spread * a[:, :, None] * a[:, None, :]
        spread = spread + 0.5 * self.spread.square() * (b / s)[:, :, None] * (b / s)[:, None, :]
        spread.diagonal(dim1=1, dim2=2).copy_(variance)
        return _Value(mean, spread, lambda towards: towards * a[:, None, :])  # Stein's lemma


class _LayerTracer(Tracer):
    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        """Torch's layers and ours are one step."""
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, HasKey)


class _Carrier(fx.Interpreter):
    """Runs a traced net on means and covariances.

    Args:
        module: the net.
        graph: of it.
        covariance: which.
    """

    def __init__(self, module: Module, graph: fx.Graph, covariance: Covariance) -> None:
        super().__init__(fx.GraphModule(module, graph))
        self._is_full = covariance == "full"
        self._cross: dict[tuple[fx.Node, fx.Node], Tensor] = {}
        """Covariance of two values, (rows, n of the first, n of the second): what a sum of them needs."""

    def run_node(self, n: fx.Node) -> Any:
        """A value, and its covariance with each other that is still to be read."""
        self._now = n
        value = super().run_node(n)
        if not isinstance(value, _Value) or not value.is_full:
            return value
        for other, known in self.env.items():
            if other in self.user_to_last_uses.get(n, []) or not isinstance(known, _Value) or not known.is_full:
                continue
            parts = [self._between(other, source) for source in n.all_input_nodes]
            moved = [value.slope(change) if value.slope else change for change in parts if change is not None]
            if moved:
                self._cross[other, n] = torch.stack(moved).sum(0)
        return value

    def _between(self, a: fx.Node, b: fx.Node) -> Tensor | None:
        """Return the covariance of two values of the graph; None where the covariance is 0."""
        if a is b:
            spread: Tensor | None = self.env[a].spread
            return spread
        if (a, b) in self._cross:
            return self._cross[a, b]
        return self._cross[b, a].transpose(1, 2) if (b, a) in self._cross else None

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
        """A layer."""
        layer: Any = self.fetch_attr(target)
        value: _Value = args[0]
        kind = type(layer)
        if kind in _DROPOUTS:
            return self._dropped(value, layer, target)
        if kind is nn.Linear:
            return value.linear(layer, lambda v: F.linear(v, layer.weight.square()))
        if kind in _CONVOLUTIONS and layer.padding_mode == "zeros":
            rest = (None, layer.stride, layer.padding, layer.dilation, layer.groups)
            return value.linear(layer, lambda v: _CONVOLUTIONS[kind](v, layer.weight.square(), *rest))
        if isinstance(layer, _POOLS):
            if value.spread is not None and not value.is_full:
                raise ValueError(
                    f"moments: {target} averages numbers that depend on each other; pass covariance='full'"
                )
            return value.linear(layer, None)
        if kind in (nn.Flatten, nn.Identity):
            return value.linear(layer, None)
        if kind is nn.ReLU:
            return value.relu()
        raise ValueError(_refusal(f"{target} ({kind.__name__})"))

    def _dropped(self, value: _Value, layer: Any, target: Any) -> _Value:
        p = float(layer.p)
        if p == 1 or getattr(layer, "shared_dims", None):
            raise ValueError(f"moments: {target} drops all, or shares dimensions; that is not carried")
        if p == 0:
            return value
        if value.spread is None and self._is_full:
            n = value.mean[0].numel()
            value = _Value(value.mean, value.mean.new_zeros(len(value.mean), n, n))
        return value.dropped(p, type(layer) in _CHANNELS)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
        """A function."""
        values = [argument for argument in args if isinstance(argument, _Value)]
        if target in (operator.add, torch.add) and len(values) == 2 and len(args) == 2 and not kwargs:
            return self._sum(*values)
        if target in (F.relu, torch.relu):
            return values[0].relu()
        if target is torch.flatten:
            return values[0].linear(lambda x: torch.flatten(x, *args[1:], **kwargs), None)
        raise ValueError(_refusal(getattr(target, "__name__", str(target))))

    def _sum(self, a: _Value, b: _Value) -> _Value:
        if a.mean.shape != b.mean.shape:
            raise ValueError(
                f"moments: a sum of shapes {tuple(a.mean.shape)}, {tuple(b.mean.shape)}; expected equal ones"
            )
        mean = a.mean + b.mean
        if a.spread is None or b.spread is None:
            return _Value(mean, a.spread if a.spread is not None else b.spread)
        if not self._is_full:
            raise ValueError("moments: a sum of values that depend on the same units; pass covariance='full'")
        cross = self._between(self._now.all_input_nodes[0], self._now.all_input_nodes[-1])
        spread = a.spread + b.spread
        return _Value(mean, spread if cross is None else spread + cross + cross.transpose(1, 2))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
        """A method."""
        value: _Value = args[0]
        rest = args[1:]
        if target == "relu":
            return value.relu()
        if target == "flatten":
            moves: Any = functools.partial(torch.Tensor.flatten, **kwargs)
            return value.linear(lambda x: moves(x, *rest), None)
        raise ValueError(_refusal(f"the method {target}"))


def _refusal(name: str) -> str:
    return (
        f"moments: {name} is not carried; known are Linear, convolutions, ReLU, dropout of elements and channels, "
        "average pooling, Flatten and sums (predict samples any model)"
    )


def carrier(model: Module, covariance: Covariance) -> Callable[[Tensor], Moments]:
    """Return a function that carries moments through a net; arguments and errors as `DropoutEnsemble.moments`.

    Reference: Wang and Manning: Fast dropout training (ICML 2013); Postels et al.: Sampling-free epistemic uncertainty
        estimation (ICCV 2019).
    """
    net = copy.deepcopy(model).double().eval()
    try:
        graph = _LayerTracer().trace(net)
    except Exception as error:  # whatever a forward does with a symbol
        raise ValueError(
            f"moments: the forward cannot be followed ({first_line(error, 100)}); predict samples any model"
        ) from error

    def moments(x: Tensor) -> Moments:
        with torch.no_grad():
            value: Any = _Carrier(net, graph, covariance).run(_Value(x.double(), None))
        if not isinstance(value, _Value):
            raise ValueError(f"moments: the forward returns {type(value).__name__}; expected one tensor")
        variance = torch.zeros_like(value.mean) if value.spread is None else value.variance
        spread = value.spread if value.is_full else None
        return Moments(value.mean.cpu(), variance.cpu(), None if spread is None else spread.cpu())

    return moments
