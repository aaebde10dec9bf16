"""Dropout as L2: exactly, for a linear model; to second order, for a logistic one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puredrop import functional
from puredrop.members.inputs import checked_number
from puredrop.report.figures import Figure
from puredrop.rng import Key

__all__ = ["Descent", "Margins", "Ridge", "margins", "ridge"]

_MOST_FEATURES = 12
"""Of a row, for the exact mean over 2^n masks."""


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent with dropout, on its way to the ridge solution.

    Args:
        steps: at which the weights were looked at.
        to_ridge: distance of the weights to the ridge solution, over the length of that solution, at each.
        to_plain: distance to the solution without dropout, likewise.
        weights: float64 (features, targets), where it landed: the mean of the last half of all steps.
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
        """Both distances by steps."""
        traces = [
            {"x": list(self.steps), "y": [100 * one for one in values], "mode": "lines", "name": name,
             "line": {"color": color, "width": 2.5}, "hovertemplate": "step %{x}: %{y:.3g} %<extra></extra>"}
            for name, values, color in (
                ("to the ridge solution", self.to_ridge, "@dropout"), ("to least squares", self.to_plain, "@none"),
            )
        ]  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "steps of SGD with dropout (log scale)"}, "type": "log", "dtick": 1},
            "yaxis": {"title": {"text": "distance (%, log scale)"}, "type": "log", "dtick": 1},
        }
        return Figure(str(self), traces, layout)


@dataclass(frozen=True)
class Ridge:
    """What dropout on the inputs of a linear model does, in closed form; everything in the unit of y (squared).

    Args:
        weights: float64 (features, targets), (XᵀX + ρ diag XᵀX)⁻¹ Xᵀy.
        strengths: float64 (features,), what is added to the diagonal: ρ Σ_i x_ij², for each feature its own.
        plain: float64 (features, targets), least squares without dropout.
        p: the rate.
        x, y: the data.
    """

    weights: Tensor
    strengths: Tensor
    plain: Tensor
    p: float
    x: Tensor
    y: Tensor

    def __str__(self) -> str:
        low, high = float(self.strengths.min()), float(self.strengths.max())
        shrunk = float(self.weights.norm() / self.plain.norm())
        return (
            f"dropout of p={self.p:g} on {len(self.weights)} features is ridge regression with a strength for each "
            f"feature, {low:.4g} to {high:.4g}; weights have {shrunk:.3f} of the length of least squares"
        )

    def expected_loss(self, weights: Tensor) -> Tensor:
        """E ‖y - (M∘X/(1-p))w‖² over masks: ‖y - Xw‖² + ρ Σ_j w_j² Σ_i x_ij², at any weights (features, targets)."""
        return (self.y - self.x @ weights).square().sum() + (self.strengths[:, None] * weights.square()).sum()

    def descend(self, steps: int = 20_000, *, batch: int = 32, rate: float | None = None, seed: int = 0) -> Descent:
        """Train by SGD with real dropout, and see where it lands.

        Args:
            steps: how many.
            batch: rows of a step.
            rate: learning rate; falls as 1/(1 + 10 step/steps). By default from the largest squared row.
            seed: of batches and masks.
        """
        checked_number("steps", steps, 10)
        x, y, key = self.x, self.y, Key(seed).fold_in("ridge")
        generator = torch.Generator().manual_seed(int(key.fold_in("rows")))
        w = torch.zeros_like(self.weights)
        rate = rate or 0.5 * (1 - self.p) / float(x.square().sum(1).max())
        mean, seen, to_ridge, to_plain = torch.zeros_like(w), [], [], []
        marks = {round(10 ** (k / 12)) for k in range(int(12 * math.log10(steps)) + 1)} | {steps}
        for step in range(1, steps + 1):
            rows = torch.randint(len(x), (batch,), generator=generator)
            dropped = functional.dropout(x[rows], self.p, key=key.fold_in(step))
            slope = dropped.T @ (dropped @ w - y[rows]) / batch
            w = w - rate / (1 + 10 * step / steps) * slope
            mean = w if step <= steps // 2 else mean + (w - mean) / (step - steps // 2)
            if step in marks:
                seen.append(step)
                to_ridge.append(float((mean - self.weights).norm() / self.weights.norm()))
                to_plain.append(float((mean - self.plain).norm() / self.plain.norm()))
        return Descent(tuple(seen), tuple(to_ridge), tuple(to_plain), mean)


def ridge(x: Any, y: Any, p: float) -> Ridge:
    """The weights to which dropout on the inputs of a linear model leads: ridge regression, scaled for each feature.

    Because each feature's strength follows its own size, predictions do not change when a column is rescaled; those of
    plain ridge regression do.

    Args:
        x: (rows, features), no column of zeros alone; rescaled, but not centred, as it was trained on.
        y: (rows,) or (rows, targets).
        p: drop probability of the features, in [0, 1).

    Returns:
        The solution, with `.weights` (features, targets); it prints, and `.descend()` trains by real dropout.

    Raises:
        ValueError: for fewer than two rows, other shapes, a rate outside [0, 1), or a singular problem.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013).

    >>> x = torch.randn(50, 3, dtype=torch.float64)
    >>> a, b = (ridge(x * torch.tensor(scale), x[:, 0], 0.5) for scale in ([1.0, 1.0, 1.0], [1.0, 1.0, 9.0]))
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


@dataclass(frozen=True)
class Margins:
    """The quadratic form of a logistic regression beside the truth, in nats a row, by the size of the margin.

    Args:
        margin: |x·w| of each row that was looked at.
        truth: E A(x̃·w) - A(x·w), over all masks.
        quadratic: ½ρ A''(x·w) Σ_j x_j² w_j².
        p: the rate.
    """

    margin: tuple[float, ...]
    truth: tuple[float, ...]
    quadratic: tuple[float, ...]
    p: float

    @property
    def ratio(self) -> tuple[float, ...]:
        """The quadratic form over the truth."""
        return tuple(a / b if b else math.nan for a, b in zip(self.quadratic, self.truth, strict=True))

    def __str__(self) -> str:
        at = ", ".join(f"{ratio:.2f} at margin {m:.2g}" for m, ratio in zip(self.margin, self.ratio, strict=True))
        return f"quadratic form over truth, logistic regression at p={self.p:g}: {at}"

    def figure(self) -> Figure:
        """The ratio by the margin."""
        line = {"x": list(self.margin), "y": list(self.ratio), "mode": "lines+markers", "line": {"color": "@dropout"},
                "hovertemplate": "margin %{x:.2f}: %{y:.3f}<extra></extra>"}  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": "margin |x·w| (logits)"}},
            "yaxis": {"title": {"text": "quadratic form / truth"}},
        }
        return Figure(str(self), [line], {**axes, "showlegend": False})


def margins(x: Any, w: Any, p: float, sizes: Sequence[float] = (0.5, 1, 2, 3, 4, 5, 6)) -> Margins:
    """How far the quadratic form of dropout's penalty on a logistic regression holds, as predictions grow surer.

    A(z) = log(1 + eᶻ). The truth is the mean over all 2^n masks, so that x has 12 features at most. Rows are rescaled
    to each margin, and averaged.

    Args:
        x: (rows, features).
        w: (features,), the direction of the weights.
        p: drop probability in (0, 1).
        sizes: margins, logits.

    Raises:
        ValueError: for more features, or a rate outside (0, 1).

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013).

    >>> x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).double() + 0.5
    >>> found = margins(x, torch.ones(8), 0.5)
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
