"""One pass compared with means of members: how good each is, and whether it knows when it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from puredrop.ensemble import risk_coverage
from puredrop.explanation._loss import check_classes
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.prepared import PreparedModel, TargetedBatches, keep_all
from puredrop.report.figures import Figure, axis, band, level, line
from puredrop.report.section import Section

__all__ = ["QUESTION", "Averages", "averages", "measure", "section"]

QUESTION = Question("uncertainty", "Does it know when it is wrong?")
_SHARES = tuple(k / 20 for k in range(2, 21))
"""Shares of rows kept: of fewer than a tenth a row or two would decide."""
_TINY = 1e-12


@dataclass(frozen=True, repr=False)
class Averages(Result):
    """Scores of one pass and of means of members, and their errors on the rows they are most confident of.

    Args:
        numbers: of members whose predictions are averaged.
        score: of each mean, averaged over groups: NLL of a classification in nats, else the mean squared error.
        low, high: the tenth and the ninetieth percentile over disjoint groups of so many members.
        one_pass: score of the pass in eval mode.
        difference: score of all members less that of one pass; then the ends of its 95 % interval over rows.
        risk: name of a prediction -> its error on the most confident rows, by `shares`; for a regression the members'.
        shares: of rows kept.
        area: name of a prediction -> mean of the error over all shares.
        task: what was predicted.
        rows: number of rows of the data.
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
        """The score's name in a sentence."""
        return "NLL" if self.task == "classification" else "mean squared error"

    @property
    def unit(self) -> str:
        """The score's name with its unit."""
        return "NLL (nats)" if self.task == "classification" else "mean squared error"

    @property
    def excludes_zero(self) -> bool:
        """Return whether averaging made a difference whose 95 % interval excludes 0."""
        return self.difference[1] > 0 or self.difference[2] < 0

    def figure(self) -> Figure:
        """Draw the score by the number of members."""
        numbers = list(self.numbers)
        hover = "%{x} members: %{y:.4f}"
        traces = [
            *band(numbers, self.low, self.high, "@members-soft"),
            line(numbers, self.score, "@members", hover, width=2.5, mode="lines+markers", name="mean of members"),
            level(numbers, self.one_pass, "@dropout", "one pass", "one pass: %{y:.4f}"),
        ]
        scores = ", ".join(f"{n} members {value:.4g}" for n, value in zip(numbers, self.score, strict=True))
        alt = f"{self.unit} by the number of members averaged: {scores}; one pass {self.one_pass:.4g}"
        xaxis = axis("members averaged (log scale)", type="log", tickvals=numbers)
        return Figure(alt, traces, {"xaxis": xaxis, "yaxis": axis(self.unit)})

    def risk_figure(self) -> Figure:
        """Draw the error on the rows that are kept, the most confident first."""
        factor, unit = (100, " (%)") if self.task == "classification" else (1, "")
        label = "error" if self.task == "classification" else "mean squared error"
        x, hover = [100 * share for share in self.shares], "most confident %{x:.0f} %: %{y:.3g}"
        traces = [
            line(
                x, [factor * error for error in risk], "@dropout" if name == "one pass" else "@members", hover,
                extra=name, width=2.5, name=name,
            )
            for name, risk in self.risk.items()
        ]  # fmt: skip
        half = self.shares.index(0.5)
        halves = "; ".join(
            f"{name} {factor * risk[half]:.3g} on the most confident half" for name, risk in self.risk.items()
        )
        axes = {
            "xaxis": axis("share of rows kept, the most confident first (%)", range=[8, 102], dtick=20),
            "yaxis": axis(f"{label} on them{unit}", rangemode="tozero"),
        }
        return Figure(f"{label} by the share of rows kept{unit}: {halves}", traces, axes)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the score by the number of members."""
        columns = {"members": self.numbers, "score": self.score, "low": self.low, "high": self.high}
        return {name: list(values) for name, values in columns.items()}

    def __str__(self) -> str:
        scores = ", ".join(f"{value:.4g} with {n}" for n, value in zip(self.numbers, self.score, strict=True))
        return f"{self.unit} by members averaged: {scores}; one pass {self.one_pass:.4g} ({self.rows} rows)"


def averages(
    prepared: PreparedModel,
    pairs: TargetedBatches,
    task: Literal["classification", "regression"],
    members: int = 64,
) -> Averages:
    """Score one pass, and the mean of so many members and of fewer, each member one sub-network for all rows.

    Raises:
        ValueError: for classes that the model does not have.
    """
    with prepared.instrument() as runner:
        outputs = [
            (
                runner.forward(batch, keep_all).double().cpu(),
                runner.members(batch, range(members), is_shared=True).double().cpu(),
                y.cpu(),
            )
            for batch, y in pairs
        ]
    one_pass, y = torch.cat([a for a, *_ in outputs]), torch.cat([c for *_, c in outputs])
    by_member = torch.cat([b for _, b, _ in outputs], 1)
    if task == "classification":
        check_classes(y, one_pass.shape[1], -100)
        one_pass, by_member = one_pass.softmax(1), by_member.softmax(2)
    numbers = [2**k for k in range(int(math.log2(members)) + 1)]
    groups = {n: _by_group(by_member, y, n, task) for n in numbers}
    away = _score(by_member.mean(0), y, task) - _score(one_pass, y, task)
    reach = 1.96 * float(away.std()) / math.sqrt(len(away))
    risk, area = _risks(one_pass, by_member, y, task)
    low, high = (tuple(float(groups[n].quantile(q)) for n in numbers) for q in (0.1, 0.9))
    return Averages(
        tuple(numbers),
        tuple(float(groups[n].mean()) for n in numbers),
        low,
        high,
        float(_score(one_pass, y, task).mean()),
        (float(away.mean()), float(away.mean()) - reach, float(away.mean()) + reach),
        risk,
        area,
        task,
        len(one_pass),
    )


measure = averages


def _by_group(by_member: Tensor, y: Tensor, number: int, task: str) -> Tensor:
    """Return the score of each disjoint group of so many members."""
    groups = by_member.split(number)
    return torch.stack([_score(group.mean(0), y, task).mean() for group in groups if len(group) == number])


def _score(predicted: Tensor, y: Tensor, task: str) -> Tensor:
    """Return each row's NLL in nats, or its squared error."""
    if task == "regression":
        return (predicted - y.reshape(predicted.shape).to(predicted)).square().flatten(1).mean(1)
    picked = predicted.gather(1, y.clamp_min(0).unsqueeze(1)).squeeze(1)
    nats, counted = -picked.clamp_min(_TINY).log(), (y != -100).double()
    return (nats * counted).reshape(len(y), -1).sum(1) / counted.reshape(len(y), -1).sum(1).clamp_min(1)


def _risks(
    one_pass: Tensor, by_member: Tensor, y: Tensor, task: str
) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """Return each prediction's error by the share of rows kept, and the area under that curve."""
    ways = {f"{len(by_member)} members": by_member.mean(0)}
    if task == "classification":
        ways = {"one pass": one_pass, **ways}
    risk, area = {}, {}
    for name, predicted in ways.items():
        if task == "classification":
            uncertainty = -(predicted * predicted.clamp_min(_TINY).log()).sum(1)
            wrong = (predicted.argmax(1) != y) & (y != -100)
        else:
            uncertainty, wrong = by_member.var(0), (predicted - y.reshape(predicted.shape).to(predicted)).square()
        rows = [part.double().reshape(len(y), -1).mean(1) for part in (uncertainty, wrong)]
        curve = risk_coverage(*rows)
        risk[name] = tuple(float(curve.risk[max(1, round(share * len(y))) - 1]) for share in _SHARES)
        area[name] = curve.area
    return risk, area


def section(case: Case) -> Section:
    """Say what leaving out uncertain rows does to the error."""
    means = case.results["averages"]
    factor, unit = (100, " %") if means.task == "classification" else (1, "")
    label = "error" if means.task == "classification" else "mean squared error"
    most = means.shares.index(0.9)
    parts = [
        f"from {factor * risk[-1]:.3g}{unit} to {factor * risk[most]:.3g}{unit} by {name}"
        for name, risk in means.risk.items()
    ]
    risk = list(means.risk.values())[-1]
    sentence = f"Abstaining on the 10 % least certain rows changes the {label} {', '.join(parts)}."
    area = ", ".join(f"{name} {factor * area:.3g}{unit}" for name, area in means.area.items())
    by = "the entropy of the predicted classes" if means.task == "classification" else "the variance over members"
    how = (
        f"Unsure is measured by {by}. Mean over all shares (area under the curve): {area}. Differences between "
        f"ways were not tested: {means.rows} rows of one network."
    )
    number = f"{factor * risk[most]:.3g}{unit}"
    return QUESTION.answer(sentence, number, f"{label} on the most confident 90 %", how, means.risk_figure())
