"""Which sub-networks training visits: how many of the 2^n, how evenly, and how much they disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.ensemble._engine import Members
from puredrop.ensemble._source import Use
from puredrop.explain._figure import Figure
from puredrop.explain._probe import Probe, checked_number, prepared

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
        keep: path -> float64 (units,), how often each unit was kept.
        rates: path -> the rate at which the site drops.
        disagreement: share of rows of which two members predict another class, or, of a regression, their root mean
            squared difference.
        disagreement_error: its standard error over members.
        members: whose predictions were compared.
        is_classification: what disagreement is.
        left: path of what drops and was off -> why.
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
    is_classification: bool
    left: dict[str, str] = field(default_factory=dict)

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
        what = "of rows two members predict another class" if self.is_classification else "rms between two members"
        shown = f"{self.disagreement:.2%}" if self.is_classification else f"{self.disagreement:.4g}"
        error = f"{self.disagreement_error:.2%}" if self.is_classification else f"{self.disagreement_error:.2g}"
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
    model: Module, x: Any, *, draws: int = 60_000, members: int = 32, seed: int = 0, batch_size: int = 1024
) -> MemberVisits:
    """Count the sub-networks that a training visits, and see how much they disagree.

    A training of e epochs over n rows draws e x n masks. These here are members' masks, drawn as training draws them:
    each unit by itself, at its site's rate.

    Args:
        model: any module.
        x: rows, on which members' predictions are compared.
        draws: masks to draw: epochs times rows of the training in question.
        members: whose predictions are compared.
        seed: of the masks.
        batch_size: rows at once.

    Returns:
        Counts, frequencies and the disagreement; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached.

    Reference: Srivastava et al.: Dropout (JMLR 2014).

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(6, 3))
    >>> found = member_visits(net, torch.randn(10, 4), draws=10_000)
    >>> found.units, found.distinct
    (6, 64)
    """
    checked_number("draws", draws)
    checked_number("members", members, 3)
    probe = prepared(model, x, seed=seed, batch_size=batch_size)
    distinct, kept = _drawn(probe, draws)
    repeats = draws * (draws - 1) / 2
    for use in probe.uses:
        repeats *= (use.p**2 + (1 - use.p) ** 2) ** use.units
    predicted, is_class = _predictions(probe, members)
    value, error = _disagreement(predicted, is_class)
    rates = {use.path: use.p for use in probe.uses}
    units = sum(use.units for use in probe.uses)
    return MemberVisits(units, draws, distinct, repeats, kept, rates, value, error, members, is_class, probe.left)


def _drawn(probe: Probe, draws: int) -> tuple[int, dict[str, Tensor]]:
    """How many different masks, and how often each unit was kept."""
    members = Members(probe.seed, is_shared=True, balanced=False)
    seen: set[bytes] = set()
    counts: dict[str, list[Tensor]] = {}
    for start in range(0, draws, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, draws))
        parts = [_keep(members, use, numbers) for use in probe.uses]
        seen.update(row.tobytes() for row in np.packbits(torch.cat(parts, 1).numpy(), axis=1))
        for use, keep in zip(probe.uses, parts, strict=True):
            counts.setdefault(use.path, []).append(keep.sum(0, dtype=torch.float64))
    return len(seen), {path: torch.stack(one).sum(0) / draws for path, one in counts.items()}


def _keep(members: Members, use: Use, numbers: range) -> Tensor:
    return members.masks(use.path, use.call).keep(numbers, use.p, use.units, 0, torch.device("cpu"))


def _predictions(probe: Probe, members: int) -> tuple[Tensor, bool]:
    """(members, rows, ...): classes, or outputs where a row has one number."""
    parts = []
    with probe.opened() as drive:
        for batch in probe.batches:
            parts.append(torch.cat(list(probe.members(drive, batch, range(members), is_shared=True))).cpu())
    outputs = torch.cat(parts, 1)
    is_class = outputs.dim() > 2 and outputs.shape[2] > 1
    return (outputs.argmax(2) if is_class else outputs.double()), is_class


def _disagreement(predicted: Tensor, is_class: bool) -> tuple[float, float]:
    """Over all pairs of members, and the jackknife's error over members."""
    number = len(predicted)
    pairs = torch.zeros(number, number, dtype=torch.float64)
    for a in range(number):
        away = (predicted != predicted[a]).double() if is_class else (predicted - predicted[a]).square()
        pairs[a] = away.flatten(1).mean(1)

    def value(of: Tensor) -> float:
        mean = float(of.sum()) / (len(of) * (len(of) - 1))
        return mean if is_class else math.sqrt(mean)

    parts = torch.tensor(
        [value(pairs[torch.arange(number) != one][:, torch.arange(number) != one]) for one in range(number)]
    )
    return value(pairs), math.sqrt((number - 1) / number * float((parts - parts.mean()).square().sum()))
