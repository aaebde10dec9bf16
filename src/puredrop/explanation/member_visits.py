"""Which sub-networks training visits: how many of the 2^n, how evenly, and how much they disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.members.engine import Members
from puredrop.members.inputs import checked_number
from puredrop.members.prepared import PreparedModel, prepare
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure
from puredrop.report.intervals import jackknife_error

__all__ = ["MemberVisits", "member_visits"]

_AT_ONCE = 8192


@dataclass(frozen=True)
class MemberVisits:
    """The sub-networks that so many draws of masks are.

    Args:
        units: decisions of a mask; there are 2^units sub-networks.
        draws: masks drawn, one for each row of each step of a training.
        distinct: different ones among them.
        expected_repeats: pairs of draws that chance makes the same: draws (draws - 1)/2 Π (p² + q²).
        keep: path (with a number behind it where it is used again) -> float64 (units,), how often each unit was kept.
        rates: the same -> the rate at which the site drops.
        disagreement: share of rows of which two members predict another class, or, of a regression, their root mean
            squared difference.
        disagreement_error: its standard error over members.
        members: whose predictions were compared.
        task: what disagreement is about.
        skipped: path of what drops and was off -> why.
    """

    units: int
    draws: int
    distinct: int
    expected_repeats: float
    keep: dict[str, Tensor]
    rates: dict[str, float]
    disagreement: float
    disagreement_error: float
    members: int
    task: Literal["classification", "regression"]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the 2^units sub-networks, those that were visited."""
        return self.distinct * 2.0**-self.units

    def worst(self, path: str) -> float:
        """Of a site's units the largest deviation of the keep frequency from 1 - p, in its standard errors."""
        p = self.rates[path]
        return float((self.keep[path] - (1 - p)).abs().max()) / math.sqrt(p * (1 - p) / self.draws)

    def __str__(self) -> str:
        lines = [
            f"{self.draws} masks drawn: {self.distinct} different sub-networks of 2^{self.units} (a share of "
            f"{_power(self.distinct, self.units)}; by chance {self.expected_repeats:.2g} pairs would be the same)"
        ]
        for path, keep in self.keep.items():
            lines.append(
                f"  {path}: units kept {float(keep.min()):.4f} to {float(keep.max()):.4f} of the time, expected "
                f"{1 - self.rates[path]:g}; largest deviation {self.worst(path):.1f} standard errors"
            )
        is_class = self.task == "classification"
        what = "of rows two members predict another class" if is_class else "rms between two members"
        shown = f"{self.disagreement:.2%}" if is_class else f"{self.disagreement:.4g}"
        error = f"{self.disagreement_error:.2%}" if is_class else f"{self.disagreement_error:.2g}"
        return "\n".join([*lines, f"{shown} ± {error} {what} ({self.members} members)"])

    def figure(self) -> Figure:
        """How often each unit was kept."""
        traces = []
        for (path, keep), color in zip(self.keep.items(), ("@dropout", "@none", "@members") * 99, strict=False):
            traces.append(
                {"type": "histogram", "x": (100 * keep).tolist(), "name": path, "opacity": 0.7,
                 "marker": {"color": color}, "hovertemplate": "%{x} %: %{y} units<extra>" + path + "</extra>"}
            )  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": "masks that keep the unit (%)"}},
            "yaxis": {"title": {"text": "units"}},
        }
        return Figure(str(self), traces, {**axes, "barmode": "overlay"})


def _power(count: int, units: int) -> str:
    exponent = math.log10(count) - units * math.log10(2)
    return f"1e{exponent:.0f}" if exponent < -4 else f"{10**exponent:.2%}"


def member_visits(
    model: Module,
    x: Any,
    *,
    task: Literal["classification", "regression"] = "classification",
    draws: int = 60_000,
    masks: Iterable[Mapping[str, Tensor]] | None = None,
    members: int = 32,
    seed: int = 0,
    batch_size: int = 1024,
) -> MemberVisits:
    """Count the sub-networks that a training visits, and see how much they disagree.

    A training of e epochs over n rows draws e x n masks. These here are drawn as training draws them: for each row
    anew, each unit by itself, at its site's rate.

    Args:
        model: any module.
        x: rows, on which members' predictions are compared.
        task: what a prediction is: the class with the highest output in dimension 1, or the outputs.
        draws: masks to draw: epochs times rows of the training in question.
        masks: those of a training, to be counted in place of drawn ones: blocks of path -> bool (rows, units), such as
            one for each of its steps. With keys they can be had again at any time: `functional.keep_mask`.
        members: whose predictions are compared.
        seed: of the masks.
        batch_size: rows at once.

    Returns:
        Counts, frequencies and the disagreement; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached;
            for masks of other sites or units.

    Reference: Srivastava et al.: Dropout (JMLR 2014).

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(6, 3))
    >>> found = member_visits(net, torch.randn(10, 4), draws=10_000)
    >>> found.units, found.distinct
    (6, 64)
    """
    checked_number("draws", draws)
    checked_number("members", members, 3)
    if task not in ("classification", "regression"):
        raise ValueError(f"task is {task!r}; expected 'classification' or 'regression'")
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    blocks = _drawn(prepared, draws) if masks is None else _replayed(prepared, masks)
    draws, distinct, kept = _counted(prepared, blocks)
    same = math.prod((use.p**2 + (1 - use.p) ** 2) ** use.units for use in prepared.uses)
    with prepared.instrument() as instrumented:
        parts = [
            prepared.members(instrumented, batch, range(members), is_shared=True).cpu() for batch in prepared.batches
        ]
    value, error = _disagreement(torch.cat(parts, 1), task == "classification")
    rates = {use.place: use.p for use in prepared.uses}
    repeats = draws * (draws - 1) / 2 * same
    return MemberVisits(
        prepared.units, draws, distinct, repeats, kept, rates, value, error, members, task, prepared.skipped
    )


def _drawn(prepared: PreparedModel, draws: int) -> Iterator[list[Tensor]]:
    """Masks of so many rows, each with its own, by use: blocks of bool (rows, units)."""
    members = Members(prepared.seed, is_shared=False, balanced=False)
    for first in range(0, draws, _AT_ONCE):
        rows = min(_AT_ONCE, draws - first)
        yield [_keep(members, use, first, rows) for use in prepared.uses]


def _replayed(prepared: PreparedModel, masks: Iterable[Mapping[str, Tensor]]) -> Iterator[list[Tensor]]:
    """Those of a training, checked."""
    for block in masks:
        parts = [block.get(use.place) for use in prepared.uses]
        sizes = [None if part is None else tuple(part.shape[1:]) for part in parts]
        expected = {use.place: (use.units,) for use in prepared.uses}
        if sizes != list(expected.values()) or len(block) != len(parts):
            given = {place: tuple(part.shape[1:]) for place, part in block.items()}
            raise ValueError(f"masks has {given} of each row; expected {expected}")
        yield [part.bool().cpu() for part in parts if part is not None]


def _counted(prepared: PreparedModel, blocks: Iterable[list[Tensor]]) -> tuple[int, int, dict[str, Tensor]]:
    """How many masks, how many different ones, and how often each unit was kept."""
    draws, seen = 0, set[bytes]()
    kept = {use.place: torch.zeros(use.units, dtype=torch.float64) for use in prepared.uses}
    for parts in blocks:
        draws += len(parts[0])
        seen.update(row.tobytes() for row in np.packbits(torch.cat(parts, 1).numpy(), axis=1))
        for use, keep in zip(prepared.uses, parts, strict=True):
            kept[use.place] += keep.sum(0)
    return draws, len(seen), {place: count / max(1, draws) for place, count in kept.items()}


def _keep(members: Members, use: SiteUse, first: int, rows: int) -> Tensor:
    masks = members.masks(use.path, use.call)
    return masks.keep([0], use.p, rows * use.units, first * use.units, torch.device("cpu")).view(rows, use.units)


def _disagreement(outputs: Tensor, is_class: bool) -> tuple[float, float]:
    """Over all pairs of members, and the jackknife's error over members."""
    predicted, number = (outputs.argmax(2) if is_class else outputs.double()), len(outputs)
    pairs = torch.zeros(number, number, dtype=torch.float64)
    for a in range(number):
        away = (predicted != predicted[a]).double() if is_class else (predicted - predicted[a]).square()
        pairs[a] = away.flatten(1).mean(1)

    def value(of: Tensor) -> float:
        mean = float(of.sum()) / (len(of) * (len(of) - 1))
        return mean if is_class else math.sqrt(mean)

    others = [torch.arange(number) != one for one in range(number)]
    without = torch.tensor([value(pairs[which][:, which]) for which in others])
    return value(pairs), float(jackknife_error(without))
