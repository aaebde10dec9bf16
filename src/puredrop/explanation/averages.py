"""One pass beside means of members: how good each is, and whether it knows when it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from puredrop.ensemble import risk_coverage
from puredrop.explanation._loss import check_classes
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.prepared import PreparedModel, TargetedBatches
from puredrop.report.figures import Figure

__all__ = ["Averages", "averages"]

_SHARES = tuple(k / 20 for k in range(2, 21))
"""Of rows kept: with fewer than a tenth of them a row or two decide."""
_TINY = 1e-12


@dataclass(frozen=True)
class Averages:
    """How good one pass and means of members are, by row.

    Args:
        numbers: of members whose predictions are averaged.
        score: of each mean: nats of a classification's NLL, else the mean squared error; the mean over groups.
        low, high: the tenth and the ninetieth percentile over disjoint groups of so many members.
        one_pass: score of the pass in eval mode.
        difference: all members less one pass; low and high are ends of its 95 % interval over rows.
        risk: way of predicting -> error on the surest share of rows, by `shares`; of a regression the members alone.
        shares: of rows kept.
        area: way of predicting -> mean of the error over all shares.
        task: what was predicted.
        rows: of the data.
    """

    numbers: tuple[int, ...]
    score: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    one_pass: float
    difference: tuple[float, float, float]
    risk: dict[str, tuple[float, ...]]
    area: dict[str, float]
    task: Literal["classification", "regression"]
    rows: int
    shares: tuple[float, ...] = _SHARES

    @property
    def name(self) -> str:
        """What the score is called in a sentence."""
        return "NLL" if self.task == "classification" else "mean squared error"

    @property
    def unit(self) -> str:
        """What the score is."""
        return "NLL (nats)" if self.task == "classification" else "mean squared error"

    @property
    def found(self) -> bool:
        """Whether averaging made a difference that these rows can tell from none."""
        return self.difference[1] > 0 or self.difference[2] < 0

    def figure(self) -> Figure:
        """The score by the number of members."""
        numbers = list(self.numbers)
        edge = {"x": numbers, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        level = [self.one_pass, self.one_pass]
        traces = [
            {**edge, "y": list(self.low)},
            {**edge, "y": list(self.high), "fill": "tonexty", "fillcolor": "@members-soft"},
            {"x": numbers, "y": list(self.score), "mode": "lines+markers", "name": "mean of members",
             "line": {"color": "@members", "width": 2.5}, "hovertemplate": "%{x} members: %{y:.4f}<extra></extra>"},
            {"x": [numbers[0], numbers[-1]], "y": level, "mode": "lines", "name": "one pass",
             "line": {"color": "@dropout", "width": 2, "dash": "dash"},
             "hovertemplate": "one pass: %{y:.4f}<extra></extra>"},
        ]  # fmt: skip
        said = ", ".join(f"{n} members {value:.4g}" for n, value in zip(numbers, self.score, strict=True))
        alt = f"{self.unit} by the number of members averaged: {said}; one pass {self.one_pass:.4g}"
        xaxis = {"title": {"text": "members averaged (log scale)"}, "type": "log", "tickvals": numbers}
        return Figure(alt, traces, {"xaxis": xaxis, "yaxis": {"title": {"text": self.unit}}})

    def risk_figure(self) -> Figure:
        """The error on the rows that are kept, the surest first."""
        factor, unit = (100, " (%)") if self.task == "classification" else (1, "")
        label = "error" if self.task == "classification" else "mean squared error"
        colors = {"one pass": "@dropout"}
        traces = [
            {"x": [100 * share for share in self.shares], "y": [factor * one for one in risk], "mode": "lines",
             "name": name, "line": {"color": colors.get(name, "@members"), "width": 2.5},
             "hovertemplate": "surest %{x:.0f} %: %{y:.3g}<extra>" + name + "</extra>"}
            for name, risk in self.risk.items()
        ]  # fmt: skip
        half = self.shares.index(0.5)
        said = "; ".join(f"{name} {factor * risk[half]:.3g} on the surest half" for name, risk in self.risk.items())
        axes = {
            "xaxis": {"title": {"text": "share of rows kept, the surest first (%)"}, "range": [8, 102], "dtick": 20},
            "yaxis": {"title": {"text": f"{label} on them{unit}"}, "rangemode": "tozero"},
        }
        return Figure(f"{label} by the share of rows kept{unit}: {said}", traces, axes)


def averages(
    prepared: PreparedModel,
    instrumented: InstrumentedModel,
    parts: TargetedBatches,
    task: Literal["classification", "regression"],
    members: int = 64,
) -> Averages:
    """Judge one pass, and the mean of so many members and of fewer, each member one sub-network for all rows.

    Raises:
        ValueError: for classes that the model does not have.
    """
    found = [
        (
            prepared.forward(instrumented, batch, keep_all).double().cpu(),
            prepared.members(instrumented, batch, range(members), is_shared=True).double().cpu(),
            y.cpu(),
        )
        for batch, y in parts
    ]
    one, y = torch.cat([a for a, *_ in found]), torch.cat([c for *_, c in found])
    every = torch.cat([b for _, b, _ in found], 1)
    if task == "classification":
        check_classes(y, one.shape[1], -100)
        one, every = one.softmax(1), every.softmax(2)
    numbers = [2**k for k in range(int(math.log2(members)) + 1)]
    groups = {n: _by_group(every, y, n, task) for n in numbers}
    last = _score(every.mean(0), y, task)
    away = last - _score(one, y, task)
    reach = 1.96 * float(away.std()) / math.sqrt(len(away))
    risk, area = _risks(one, every, y, task)
    low, high = (tuple(float(groups[n].quantile(q)) for n in numbers) for q in (0.1, 0.9))
    return Averages(
        tuple(numbers),
        tuple(float(groups[n].mean()) for n in numbers),
        low,
        high,
        float(_score(one, y, task).mean()),
        (float(away.mean()), float(away.mean()) - reach, float(away.mean()) + reach),
        risk,
        area,
        task,
        len(one),
    )


def _by_group(every: Tensor, y: Tensor, number: int, task: str) -> Tensor:
    """The score of each disjoint group of so many members."""
    groups = every.split(number)
    return torch.stack([_score(group.mean(0), y, task).mean() for group in groups if len(group) == number])


def _score(predicted: Tensor, y: Tensor, task: str) -> Tensor:
    """Of each row: nats of the truth, or the squared error."""
    if task == "regression":
        return (predicted - y.reshape(predicted.shape).to(predicted)).square().flatten(1).mean(1)
    picked = predicted.gather(1, y.clamp_min(0).unsqueeze(1)).squeeze(1)
    nats, counted = -picked.clamp_min(_TINY).log(), (y != -100).double()
    return (nats * counted).reshape(len(y), -1).sum(1) / counted.reshape(len(y), -1).sum(1).clamp_min(1)


def _risks(one: Tensor, every: Tensor, y: Tensor, task: str) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    ways = {f"{len(every)} members": every.mean(0)}
    if task == "classification":
        ways = {"one pass": one, **ways}
    risk, area = {}, {}
    for name, predicted in ways.items():
        if task == "classification":
            doubt = -(predicted * predicted.clamp_min(_TINY).log()).sum(1)
            wrong = (predicted.argmax(1) != y) & (y != -100)
        else:
            doubt, wrong = every.var(0), (predicted - y.reshape(predicted.shape).to(predicted)).square()
        rows = [part.double().reshape(len(y), -1).mean(1) for part in (doubt, wrong)]
        curve = risk_coverage(*rows)
        risk[name] = tuple(float(curve.risk[max(1, round(share * len(y))) - 1]) for share in _SHARES)
        area[name] = curve.area
    return risk, area
