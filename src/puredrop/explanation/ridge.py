"""Dropout as L2: exactly, for a linear model; to second order, for a logistic one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop import functional
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case
from puredrop.members.inputs import checked_number
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure, axis, line
from puredrop.rng import Key

__all__ = ["Descent", "Margins", "Ridge", "landing", "margins", "measure", "ridge"]

_MOST_FEATURES = 12
"""Features of a row, at most, for the exact mean over 2^n masks."""
_UNITS, _STEPS = 64, 8000
"""Units of a network in its linear model, and steps of SGD."""


@dataclass(frozen=True, repr=False)
class Descent(Result):
    """The way of stochastic gradient descent with dropout to the ridge solution: what `Ridge.descend` returns.

    Args:
        steps: numbers of the steps at which the weights were recorded.
        to_ridge: at each of them, the distance of the weights to the ridge solution, divided by that solution's length.
        to_plain: the distance to least squares, divided by the length of that solution.
        weights: float64 (features, targets), where the descent landed: the mean of the last half of all steps.
    """

    steps: tuple[int, ...]
    to_ridge: tuple[float, ...]
    to_plain: tuple[float, ...]
    weights: Tensor

    def __str__(self) -> str:
        return (
            f"after {self.steps[-1]} steps of SGD with dropout the weights are {self.to_ridge[-1]:.2%} from the ridge "
            f"solution, {self.to_plain[-1]:.2%} from that without dropout"
        )

    def figure(self) -> Figure:
        """Draw both distances by the number of steps."""
        traces = [
            line(self.steps, [100 * value for value in values], color, "step %{x}: %{y:.3g} %", width=2.5, name=name)
            for name, values, color in (
                ("to the ridge solution", self.to_ridge, "@dropout"), ("to least squares", self.to_plain, "@none"),
            )
        ]  # fmt: skip
        layout = {
            "xaxis": axis("steps of SGD with dropout (log scale)", type="log", dtick=1),
            "yaxis": axis("distance (%, log scale)", type="log", dtick=1),
        }
        return Figure(str(self), traces, layout)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the distances by the number of steps."""
        return {"step": list(self.steps), "to_ridge": list(self.to_ridge), "to_plain": list(self.to_plain)}


@dataclass(frozen=True, repr=False)
class Ridge(Result):
    """The weights of a linear model with dropout on its inputs, in closed form: what `puredrop.explain.ridge` returns.

    Args:
        weights: float64 (features, targets), (XᵀX + ρ diag XᵀX)⁻¹ Xᵀy with ρ = p/(1-p).
        strengths: float64 (features,), the ridge's strength for each feature: ρ Σ_i x_ij².
        plain: float64 (features, targets), least squares without dropout.
        p: drop probability of the features.
        x, y: the data, float64 (rows, features) and (rows, targets).
    """

    weights: Tensor
    strengths: Tensor
    plain: Tensor
    p: float
    x: Tensor
    y: Tensor
    _raw: ClassVar = ("x", "y")

    def __str__(self) -> str:
        low, high = float(self.strengths.min()), float(self.strengths.max())
        shrunk = float(self.weights.norm() / self.plain.norm())
        return (
            f"dropout of p={self.p:g} on {len(self.weights)} features is ridge regression with a strength for each "
            f"feature, {low:.4g} to {high:.4g}; weights have {shrunk:.3f} of the length of least squares"
        )

    def expected_loss(self, weights: Tensor) -> Tensor:
        """Return E ‖y - (M∘X/(1-p))w‖² over masks at any weights w (features, targets), in the unit of y squared.

        It is ‖y - Xw‖² + ρ Σ_j w_j² Σ_i x_ij²: the squared error, and the ridge's penalty.
        """
        return (self.y - self.x @ weights).square().sum() + (self.strengths[:, None] * weights.square()).sum()

    def descend(self, steps: int = 20_000, *, batch: int = 32, rate: float | None = None, seed: int = 0) -> Descent:
        """Train by SGD with real dropout, and record how near the weights come to the ridge solution.

        Args:
            steps: number of steps, 10 at least.
            batch: rows of a step.
            rate: learning rate at the start; it falls as 1/(1 + 10 step/steps). By default from the largest row.
            seed: of batches and masks.
        """
        checked_number("steps", steps, 10)
        x, y, key = self.x, self.y, Key(seed).fold_in("ridge")
        generator = torch.Generator().manual_seed(int(key.fold_in("rows")))
        w = torch.zeros_like(self.weights)
        rate = rate or 0.5 * (1 - self.p) / float(x.square().sum(1).max())
        mean, recorded, to_ridge, to_plain = torch.zeros_like(w), [], [], []
        marks = {round(10 ** (k / 12)) for k in range(int(12 * math.log10(steps)) + 1)} | {steps}
        for step in range(1, steps + 1):
            rows = torch.randint(len(x), (batch,), generator=generator)
            dropped = functional.dropout(x[rows], self.p, key=key.fold_in(step))
            slope = dropped.T @ (dropped @ w - y[rows]) / batch
            w = w - rate / (1 + 10 * step / steps) * slope
            mean = w if step <= steps // 2 else mean + (w - mean) / (step - steps // 2)
            if step in marks:
                recorded.append(step)
                to_ridge.append(float((mean - self.weights).norm() / self.weights.norm()))
                to_plain.append(float((mean - self.plain).norm() / self.plain.norm()))
        return Descent(tuple(recorded), tuple(to_ridge), tuple(to_plain), mean)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the weights of each feature and target, and the feature's strength."""
        features, targets = self.weights.shape
        return {
            "feature": [feature for feature in range(features) for _ in range(targets)],
            "target": list(range(targets)) * features,
            "weight": self.weights.flatten().tolist(),
            "plain": self.plain.flatten().tolist(),
            "strength": self.strengths.repeat_interleave(targets).tolist(),
        }


def ridge(x: Any, y: Any, p: float) -> Ridge:
    """Solve for the weights to which dropout on the inputs of a linear model leads: ridge regression by feature.

    Use it to see the one case in which dropout is L2 exactly. Because each feature's strength follows its own size,
    predictions do not change when a column is rescaled; those of plain ridge regression do.

    Args:
        x: features as the model is trained on them, (rows, features); no column of zeros alone.
        y: targets, (rows,) or (rows, targets).
        p: drop probability of the features, in [0, 1).

    Returns:
        The solution, with `.weights` (features, targets); it prints, and `.descend()` trains with real dropout.

    Raises:
        ValueError: for fewer than two rows, other shapes, a rate outside [0, 1), or a singular problem.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013).

    >>> from puredrop import explain
    >>> x = torch.randn(50, 3, dtype=torch.float64)
    >>> scales = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 9.0])
    >>> a, b = (explain.ridge(x * scale, x[:, 0], 0.5) for scale in scales)
    >>> torch.allclose(a.weights[2], 9 * b.weights[2])
    True
    """
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (rows, features) with two rows at least")
    if y.dim() not in (1, 2) or len(y) != len(x):
        raise ValueError(f"y has shape {tuple(y.shape)}; expected one entry for each of {len(x)} rows of x")
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}; expected a drop probability in [0, 1)")
    y = y.reshape(len(x), -1)
    gram, strengths = x.T @ x, p / (1 - p) * x.square().sum(0)
    try:
        weights = torch.linalg.solve(gram + strengths.diag(), x.T @ y)
    except RuntimeError as error:
        raise ValueError(
            f"x has features that others say already (or zeros alone), and p is {p}; drop these columns"
        ) from error
    return Ridge(weights, strengths, torch.linalg.lstsq(x, y, driver="gelsd").solution, float(p), x, y)


measure = ridge


def landing(case: Case) -> tuple[Ridge, Descent] | None:
    """Solve and train a linear model of some of the units before a network's last site.

    Returns:
        The ridge solution and the descent; None where these units are no features of rows, or depend on each other.
    """
    last, parts = case.prepared.uses[-1], []

    def record(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if use.place == last.place and dim == 0 and input.dim() == 2:
            parts.append(input.detach().double().cpu())
        return input

    with case.prepared.instrument() as runner:
        for batch in case.prepared.batches:
            runner.forward(batch, record)
    y = case.subject.y.cpu()
    if not parts or y.dim() > 1:
        return None
    h = torch.cat(parts)
    size = h.square().mean(0).sqrt()
    which = size.topk(min(_UNITS, int((size > 0).sum()), len(h) // 4)).indices
    if not len(which):
        return None
    targets = F.one_hot(y).double() if case.subject.task == "classification" else y.double()
    try:
        solved = ridge(h[:, which] / size[which], targets, last.p)
    except ValueError:  # units that are sums of others
        return None
    return solved, solved.descend(_STEPS, seed=case.subject.seed)


@dataclass(frozen=True, repr=False)
class Margins(Result):
    """Dropout's penalty on a logistic regression by the margin: what `puredrop.explain.margins` returns.

    Args:
        margin: sizes of |x·w|, in logits.
        truth: at each, E A(x̃·w) - A(x·w) over all masks, in nats a row.
        quadratic: at each, the L2-like form ½ρ A''(x·w) Σ_j x_j² w_j², in nats a row.
        p: drop probability of the features.
    """

    margin: tuple[float, ...]
    truth: tuple[float, ...]
    quadratic: tuple[float, ...]
    p: float

    @property
    def ratio(self) -> tuple[float, ...]:
        """The quadratic form divided by the truth, at each margin."""
        return tuple(a / b if b else math.nan for a, b in zip(self.quadratic, self.truth, strict=True))

    def __str__(self) -> str:
        at = ", ".join(f"{ratio:.2f} at margin {m:.2g}" for m, ratio in zip(self.margin, self.ratio, strict=True))
        return f"quadratic form over truth, logistic regression at p={self.p:g}: {at}"

    def figure(self) -> Figure:
        """Draw the ratio by the margin."""
        curve = line(self.margin, self.ratio, "@dropout", "margin %{x:.2f}: %{y:.3f}", mode="lines+markers")
        axes = {"xaxis": axis("margin |x·w| (logits)"), "yaxis": axis("quadratic form / truth")}
        return Figure(str(self), [curve], {**axes, "showlegend": False})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the penalty and its quadratic form by the margin."""
        names = ("margin", "truth", "quadratic", "ratio")
        return {name: list(getattr(self, name)) for name in names}


def margins(x: Any, w: Any, p: float, sizes: Sequence[float] = (0.5, 1, 2, 3, 4, 5, 6)) -> Margins:
    """Measure how far the L2-like form of dropout's penalty on a logistic regression holds as margins grow.

    Use it to see why dropout is not L2 for confident predictions. With A(z) = log(1 + eᶻ) the penalty of a row is
    E A(x̃·w) - A(x·w); its mean is taken over all 2^n masks, so that x has 12 features at most. Rows are rescaled to
    each margin, and averaged.

    Args:
        x: features, (rows, features), 12 features at most.
        w: direction of the weights, (features,).
        p: drop probability of the features, in (0, 1).
        sizes: margins |x·w|, in logits.

    Returns:
        The penalty and its quadratic form by the margin; it prints, and `figure()` draws their ratio.

    Raises:
        ValueError: for more features, weights of another length, or a rate outside (0, 1).

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013).

    >>> from puredrop import explain
    >>> x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).double() + 0.5
    >>> found = explain.margins(x, torch.ones(8), 0.5)
    >>> found.ratio[0] > 0.9 > found.ratio[-1]
    True
    """
    x, w = torch.as_tensor(x).double(), torch.as_tensor(w).double()
    if x.dim() != 2 or not 1 <= x.shape[1] <= _MOST_FEATURES or w.shape != x.shape[1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, w {tuple(w.shape)}; expected (rows, features) and (features,), with at "
            f"most {_MOST_FEATURES} features, whose masks are all run"
        )
    if not 0 < p < 1:
        raise ValueError(f"p is {p}; expected a drop probability between 0 and 1")
    terms = x * w
    terms = terms / terms.sum(1, keepdim=True).abs().clamp_min(1e-12)
    keep = ((torch.arange(2 ** x.shape[1])[:, None] >> torch.arange(x.shape[1])) & 1).double()
    chance = (1 - p) ** keep.sum(1) * p ** (x.shape[1] - keep.sum(1))
    truth, quadratic = [], []
    for size in sizes:
        of_size = size * terms
        z = of_size.sum(1)
        thinned = torch.nn.functional.softplus(keep @ of_size.T / (1 - p))
        slope = torch.sigmoid(z)
        truth.append(float((chance @ thinned - torch.nn.functional.softplus(z)).mean()))
        curved = slope * (1 - slope) * of_size.square().sum(1)
        quadratic.append(float(0.5 * p / (1 - p) * curved.mean()))
    return Margins(tuple(map(float, sizes)), tuple(truth), tuple(quadratic), float(p))
