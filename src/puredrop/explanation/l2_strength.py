"""Which L2 penalty dropout amounts to, for each weight of a trained net."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._loss import Loss, check, root
from puredrop.members.inputs import Batch, checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.prepared import PreparedModel, prepare, probe_vectors
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure
from puredrop.rng import Key

__all__ = ["L2Strength", "l2_strength"]


@dataclass(frozen=True)
class L2Strength:
    """For each weight that reads a dropped input, the L2 penalty that dropout amounts to there: ½ λ w².

    Args:
        layers: path -> float64 like the layer's weight, λ in the unit of the loss over that of the weight squared.
        errors: path -> their standard errors over probes; 0 where each output had one of its own.
        shares: path -> Σ ½ λ w² over the layer's part of the Gauss-Newton penalty, which also has terms in pairs of
            weights of one unit: 1 where the diagonal says it all.
        probes: how many products with the transposed Jacobian of a batch.
        skipped: path of what drops, and has no strength here -> why.
    """

    layers: dict[str, Tensor]
    errors: dict[str, Tensor]
    shares: dict[str, float]
    probes: int
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for path, strength in self.layers.items():
            low, mid, high = strength.flatten().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
            lines.append(
                f"{path}: L2 strength per weight {mid:.3g} (90 % within {low:.2g} to {high:.2g}, standard error "
                f"{float(self.errors[path].median()):.2g} in the middle), {self.shares[path]:.2f} of the Gauss-"
                "Newton penalty"
            )
        lines += [f"  not part of it: {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """How the strengths of each layer's weights are spread."""
        traces, shares = [], torch.linspace(0, 1, 101)
        colors = ("@dropout", "@none", "@members", "@batchwise") * 99
        for (path, strength), color in zip(self.layers.items(), colors, strict=False):
            values = strength.flatten().quantile(shares.double()).tolist()
            traces.append(
                {"x": (100 * shares).tolist(), "y": values, "mode": "lines", "name": path, "line": {"color": color},
                 "hovertemplate": "%{x:.0f} % of weights below %{y:.3g}<extra>" + path + "</extra>"}
            )  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "share of weights (%)"}},
            "yaxis": {"title": {"text": "L2 strength below (log scale)"}, "type": "log"},
        }
        return Figure(str(self), traces, layout)


def l2_strength(
    model: Module, x: Any, y: Any, loss: Loss, *, probes: int = 64, seed: int = 0, batch_size: int = 1024
) -> L2Strength:
    """The L2 strength per weight that dropout amounts to in a trained net, to second order.

    The Gauss-Newton penalty of a layer that reads dropped inputs h is ½ρ Σ_j E (h_j Σ_k w_kj δ_k)², δ the loss's
    curvature root at the layer's outputs: quadratic in the weights of each input j. Its diagonal is
    λ_kj = ρ E h_j² δ_k²: stronger for inputs that are large, and for outputs to which the loss is sensitive.

    Args:
        model: with `torch.nn.Linear` layers right behind dropout layers.
        x, y, loss, probes, seed, batch_size: as for `penalty`.

    Raises:
        ValueError: as `penalty`; if no Linear reads a dropout layer's output.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013), on its adaptivity.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    >>> found = l2_strength(net, torch.randn(50, 4), torch.randn(50, 1), torch.nn.functional.mse_loss)
    >>> abs(found.shares["3"] - 1) < 1e-5
    True
    """
    checked_number("probes", probes, 2)
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    generator = torch.Generator().manual_seed(int(Key(seed).fold_in("probes")))
    found: dict[str, _Sums] = {}
    with prepared.instrument() as instrumented:
        for batch, targets in prepared.with_targets(y):
            outputs, readers = _read(prepared, instrumented, batch)
            check(loss, outputs.detach(), targets)
            multiply = root(loss, outputs, targets)
            drawn = {one.path: _Sums(one, batch.rows / prepared.rows) for one in readers}
            ends = [one.output for one in readers]
            each, number, is_drawn = probe_vectors(outputs, probes, generator)
            for noise in each:
                slopes = torch.autograd.grad(outputs, ends, multiply(noise), retain_graph=True)
                for one, slope in zip(readers, slopes, strict=True):
                    drawn[one.path].add(slope, number, is_drawn)
            found = {path: sums.joined(found.get(path)) for path, sums in drawn.items()}
    read = {one.place for one in readers}
    skipped = {use.place: "no torch.nn.Linear reads it" for use in prepared.uses if use.place not in read}
    return L2Strength(
        {path: one.strength for path, one in found.items()},
        {path: one.variance.sqrt() for path, one in found.items()},
        {path: one.diagonal / one.whole if one.whole else math.nan for path, one in found.items()},
        number,
        {**prepared.skipped, **skipped},
    )


@dataclass(frozen=True)
class _Reader:
    """A Linear that reads what a site leaves: its path, input, output and weight, and the site's use and rate."""

    path: str
    input: Tensor
    output: Tensor
    weight: Tensor
    place: str
    p: float


class _Sums:
    """Strengths of one layer, from some rows: by all probes, the variance of that, and both penalties."""

    def __init__(self, reader: _Reader, share: float) -> None:
        self._squares = reader.input.flatten(0, -2).double().square()
        self._weight = reader.weight.double()
        self._scale = share * reader.p / (1 - reader.p)
        self.strength, self.variance = torch.zeros_like(self._weight), torch.zeros_like(self._weight)
        self.whole, self._count = 0.0, 0

    @property
    def diagonal(self) -> float:
        """The penalty of the strengths."""
        return 0.5 * float((self.strength * self._weight.square()).sum())

    def add(self, slope: Tensor, number: int, is_drawn: bool) -> None:
        """One of so many probes: drawn ones have a mean, others a sum, which has no error."""
        slope = slope.flatten(0, -2).double()
        found = self._scale * slope.square().T @ self._squares
        whole = 0.5 * self._scale * float(((slope @ self._weight).square() * self._squares).sum())
        if not is_drawn:
            self.strength, self.whole = self.strength + found, self.whole + whole
            return
        self._count += 1
        away = found - self.strength  # Welford's sums
        self.strength = self.strength + away / self._count
        self.variance = self.variance + away * (found - self.strength) / (number * (number - 1))
        self.whole += whole / number

    def joined(self, other: _Sums | None) -> _Sums:
        """With those of other rows."""
        if other is not None:
            self.strength = self.strength + other.strength
            self.variance = self.variance + other.variance
            self.whole += other.whole
        return self


def _read(prepared: PreparedModel, instrumented: InstrumentedModel, batch: Batch) -> tuple[Tensor, list[_Reader]]:
    """Outputs, and the layers that read a site."""
    dropped: dict[int, tuple[Tensor, SiteUse]] = {}
    readers: list[_Reader] = []

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        passed = input.view_as(input)
        if dim is not None and 0 < use.p < 1 and use.units * batch.rows == input.numel():
            dropped[id(passed)] = (passed, use)  # held, so that no other tensor has its number
        return passed

    def hook(path: str, layer: torch.nn.Linear) -> Callable[[Module, tuple[Any, ...], Tensor], None]:
        def seen(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs and id(inputs[0]) in dropped:
                use = dropped[id(inputs[0])][1]
                name = path if not any(one.path == path for one in readers) else f"{path} behind {use.place}"
                readers.append(_Reader(name, inputs[0].detach(), output, layer.weight.detach(), use.place, use.p))

        return seen

    with ExitStack() as stack:
        for path, layer in instrumented.model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                stack.callback(layer.register_forward_hook(hook(path, layer)).remove)
        stack.enter_context(torch.enable_grad())
        outputs = prepared.forward(instrumented, batch, intervention)
    if not readers:
        raise ValueError(
            "model has no torch.nn.Linear that reads what dropout of elements leaves; nothing to compare to L2"
        )
    return outputs, readers
