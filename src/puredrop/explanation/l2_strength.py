"""The L2 penalty that dropout amounts to, for each weight of a trained net."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._inputs import prepare_with_targets, targets_and_loss
from puredrop.explanation._loss import Loss, check, curvature_root
from puredrop.explanation._result import Result
from puredrop.members.inputs import Batch, checked_number
from puredrop.members.prepared import PreparedModel, Runner, probe_vectors
from puredrop.members.sites import SiteUse
from puredrop.report.figures import COLORS, Figure, axis, line
from puredrop.rng import Key

__all__ = ["L2Strength", "l2_strength", "measure"]


@dataclass(frozen=True, repr=False)
class L2Strength(Result):
    """The L2 penalty ½ λ w² that dropout amounts to, by weight: what `puredrop.explain.l2_strength` returns.

    Args:
        layers: path of a Linear that reads dropped inputs -> float64 like its weight, λ in the unit of the loss over
            that of the weight squared.
        errors: path -> standard errors of λ over probes; 0 where each output had a probe of its own.
        shares: path -> Σ ½ λ w² divided by the layer's part of the Gauss-Newton penalty, which also has products of
            two weights of one unit: 1 where the squares make up all of it.
        probes: products with the transposed Jacobian of a batch.
        skipped: path of a module or call that drops, and has no strength here -> the reason.
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
        """Draw how the strengths of each layer's weights are spread."""
        traces, shares = [], torch.linspace(0, 1, 101)
        hover = "%{x:.0f} % of weights below %{y:.3g}"
        for (path, strength), color in zip(self.layers.items(), COLORS, strict=False):
            values = strength.flatten().quantile(shares.double()).tolist()
            traces.append(line((100 * shares).tolist(), values, color, hover, extra=path, name=path))
        layout = {"xaxis": axis("share of weights (%)"), "yaxis": axis("L2 strength below (log scale)", type="log")}
        return Figure(str(self), traces, layout)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: each layer's median strength, the range of 90 % of its weights, its share."""
        low, median, high = (
            [float(strength.flatten().quantile(level)) for strength in self.layers.values()]
            for level in (0.05, 0.5, 0.95)
        )
        return {
            "path": list(self.layers),
            "low": low,
            "median": median,
            "high": high,
            "standard_error": [float(self.errors[path].median()) for path in self.layers],
            "share": [self.shares[path] for path in self.layers],
        }


def l2_strength(
    model: Module | PreparedModel,
    x: Any,
    y: Any = None,
    loss: Loss | str | None = None,
    *,
    probes: int = 64,
    class_dim: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> L2Strength:
    """Measure the L2 strength of each weight that dropout amounts to in a trained net, to second order.

    Use it to see which weight decay dropout stands for, and for which weights. The Gauss-Newton penalty of a layer that
    reads dropped inputs h is ½ρ Σ_j E (h_j Σ_k w_kj δ_k)², δ the loss's curvature root at the layer's outputs:
    quadratic in the weights of each input j. Its diagonal is λ_kj = ρ E h_j² δ_k²: stronger for inputs that are large,
    and for outputs to which the loss is sensitive.

    Args:
        model: with `torch.nn.Linear` layers right after dropout layers.
        x: rows, (rows, ...), two at least: a tensor, an array, a table, or a mapping or tuple of them; with y left
            out, a batch (x, y) or a DataLoader of such batches.
        y: targets of the rows, (rows, ...).
        loss: "cross_entropy", "mse_loss", or a function (outputs, y) -> mean over rows; by default "mse_loss" for
            floating-point y, else "cross_entropy".
        probes: products with the transposed Jacobian, at most.
        class_dim: dimension of the classes in the outputs, which `loss` gets in dimension 1: -1 for (rows, time,
            classes). By default found from y for cross entropy, else outputs stay as they are.
        seed: of the probes.
        batch_size: rows at once.

    Returns:
        Strengths by weight, and how much of the penalty they make up; it prints, and `figure()` draws it.

    Raises:
        TypeError, ValueError: for a loss that is no mean over rows, classes that the model does not have, fewer than
            two rows, or a model in which no Linear reads a dropout layer's output.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013), on its adaptivity.

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    >>> found = explain.l2_strength(net, torch.randn(50, 4), torch.randn(50, 1), "mse_loss")
    >>> abs(found.shares["3"] - 1) < 1e-5
    True
    """
    checked_number("probes", probes, 2)
    x, y, loss = targets_and_loss(x, y, loss)
    prepared, pairs = prepare_with_targets(model, x, y, class_dim, loss, seed=seed, batch_size=batch_size)
    generator = torch.Generator().manual_seed(int(Key(seed).fold_in("probes")))
    layers: dict[str, _StrengthSums] = {}
    with prepared.instrument() as runner:
        for batch, targets in pairs:
            outputs, readers = _read(runner, batch)
            check(loss, outputs.detach(), targets)
            multiply = curvature_root(loss, outputs, targets)
            sums = {reader.path: _StrengthSums(reader, batch.rows / prepared.rows) for reader in readers}
            ends = [reader.output for reader in readers]
            vectors, number, is_drawn = probe_vectors(outputs, probes, generator)
            for noise in vectors:
                slopes = torch.autograd.grad(outputs, ends, multiply(noise), retain_graph=True)
                for reader, slope in zip(readers, slopes, strict=True):
                    sums[reader.path].add(slope, number, is_drawn)
            layers = {path: layer.joined(layers.get(path)) for path, layer in sums.items()}
    read = {reader.place for reader in readers}
    skipped = {use.place: "no torch.nn.Linear reads it" for use in prepared.uses if use.place not in read}
    return L2Strength(
        {path: layer.strength for path, layer in layers.items()},
        {path: layer.variance.sqrt() for path, layer in layers.items()},
        {path: layer.diagonal / layer.whole if layer.whole else math.nan for path, layer in layers.items()},
        number,
        {**prepared.skipped, **skipped},
    )


measure = l2_strength


@dataclass(frozen=True)
class _Reader:
    """A Linear whose input a site dropped: its path, input, output and weight, and the site's place and rate."""

    path: str
    input: Tensor
    output: Tensor
    weight: Tensor
    place: str
    p: float


class _StrengthSums:
    """Strengths of one layer from some rows: their mean or sum over probes, its variance, and both penalties."""

    def __init__(self, reader: _Reader, share: float) -> None:
        self._squares = reader.input.flatten(0, -2).double().square()
        self._weight = reader.weight.double()
        self._scale = share * reader.p / (1 - reader.p)
        self.strength, self.variance = torch.zeros_like(self._weight), torch.zeros_like(self._weight)
        self.whole, self._count = 0.0, 0

    @property
    def diagonal(self) -> float:
        """The penalty ½ Σ λ w² of the strengths."""
        return 0.5 * float((self.strength * self._weight.square()).sum())

    def add(self, slope: Tensor, number: int, is_drawn: bool) -> None:
        """Add one of so many probes: drawn probes are averaged, the others summed, without error."""
        slope = slope.flatten(0, -2).double()
        strength = self._scale * slope.square().T @ self._squares
        whole = 0.5 * self._scale * float(((slope @ self._weight).square() * self._squares).sum())
        if not is_drawn:
            self.strength, self.whole = self.strength + strength, self.whole + whole
            return
        self._count += 1
        away = strength - self.strength  # Welford's sums
        self.strength = self.strength + away / self._count
        self.variance = self.variance + away * (strength - self.strength) / (number * (number - 1))
        self.whole += whole / number

    def joined(self, sums: _StrengthSums | None) -> _StrengthSums:
        """Return the sums with those of other rows added."""
        if sums is not None:
            self.strength = self.strength + sums.strength
            self.variance = self.variance + sums.variance
            self.whole += sums.whole
        return self


def _read(runner: Runner, batch: Batch) -> tuple[Tensor, list[_Reader]]:
    """Return the outputs, and the layers whose input a site dropped."""
    dropped: dict[int, tuple[Tensor, SiteUse]] = {}
    readers: list[_Reader] = []

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        passed = input.view_as(input)
        if dim is not None and 0 < use.p < 1 and use.units * batch.rows == input.numel():
            dropped[id(passed)] = (passed, use)  # holding the tensor keeps its id from being given to another
        return passed

    def hook(path: str, layer: torch.nn.Linear) -> Callable[[Module, tuple[Any, ...], Tensor], None]:
        def record(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs and id(inputs[0]) in dropped:
                use = dropped[id(inputs[0])][1]
                name = path if not any(reader.path == path for reader in readers) else f"{path} after {use.place}"
                readers.append(_Reader(name, inputs[0].detach(), output, layer.weight.detach(), use.place, use.p))

        return record

    with ExitStack() as stack:
        for path, layer in runner.model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                stack.callback(layer.register_forward_hook(hook(path, layer)).remove)
        stack.enter_context(torch.enable_grad())
        outputs = runner.forward(batch, intervention)
    if not readers:
        raise ValueError(
            "model has no torch.nn.Linear that reads what dropout of elements leaves; nothing to compare to L2"
        )
    return outputs, readers
