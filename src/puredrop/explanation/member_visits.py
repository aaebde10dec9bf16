"""The sub-networks that training visits: how many of the 2^n, how evenly, and how much they disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._inputs import check_task, resolve_class_dim
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.engine import MemberMasks
from puredrop.members.inputs import checked_number
from puredrop.members.prepared import PreparedModel, prepare
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure, axis, histogram
from puredrop.report.intervals import jackknife_error
from puredrop.report.section import Section

__all__ = ["QUESTION", "MemberVisits", "drawing", "measure", "member_visits", "section"]

QUESTION = Question("network", "How does dropout work?")
_AT_ONCE = 8192
_SHOWN, _DRAWN_MEMBERS, _COLUMNS = 9, 24, 6


@dataclass(frozen=True, repr=False)
class MemberVisits(Result):
    """The sub-networks that a number of drawn masks selects: what `puredrop.explain.member_visits` returns.

    Args:
        units: decisions of a mask; there are 2^units sub-networks.
        draws: masks drawn, one for each row of each step of a training.
        distinct: different masks among them.
        expected_repeats: pairs of draws that chance makes the same: draws (draws - 1)/2 Π (p² + q²).
        keep: path of a site (with a number after it where it is used again) -> float64 (units,), the share of masks
            that keep each unit.
        rates: path of a site -> the rate at which it drops.
        disagreement: share of rows of which two members predict different classes, or, for a regression, their root
            mean squared difference.
        disagreement_error: its standard error over members.
        members: number of members whose predictions were compared.
        task: "classification" or "regression".
        skipped: path of a module or call that drops and was off -> the reason.
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
        """Share of the 2^units sub-networks that the drawn masks selected at least once."""
        return self.distinct * 2.0**-self.units

    def worst(self, path: str) -> float:
        """Return a site's largest deviation of a keep frequency from 1 - p, in standard errors."""
        p = self.rates[path]
        return float((self.keep[path] - (1 - p)).abs().max()) / math.sqrt(p * (1 - p) / self.draws)

    def __str__(self) -> str:
        lines = [
            f"{self.draws} masks drawn: {self.distinct} different sub-networks of 2^{self.units} (a share of "
            f"{_share(self.distinct, self.units)}; by chance {self.expected_repeats:.2g} pairs would be the same)"
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
        """Draw how often each unit was kept."""
        colors = ("@dropout", "@none", "@members") * 99
        traces = [
            histogram(
                (100 * keep).tolist(), color, "%{x} %: %{y} units", extra=path, name=path, opacity=0.7
            )
            for (path, keep), color in zip(self.keep.items(), colors, strict=False)
        ]  # fmt: skip
        axes = {"xaxis": axis("masks that keep the unit (%)"), "yaxis": axis("units")}
        return Figure(str(self), traces, {**axes, "barmode": "overlay"})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: how often each unit was kept, and the expectation."""
        return {
            "path": [path for path, keep in self.keep.items() for _ in range(len(keep))],
            "unit": [unit for keep in self.keep.values() for unit in range(len(keep))],
            "kept": [share for keep in self.keep.values() for share in keep.tolist()],
            "expected": [1 - self.rates[path] for path, keep in self.keep.items() for _ in range(len(keep))],
        }


def _share(count: int, units: int) -> str:
    exponent = math.log10(count) - units * math.log10(2)
    return f"1e{exponent:.0f}" if exponent < -4 else f"{10**exponent:.2%}"


def member_visits(
    model: Module | PreparedModel,
    x: Any,
    *,
    task: Literal["classification", "regression"] = "classification",
    draws: int = 60_000,
    masks: Iterable[Mapping[str, Tensor]] | None = None,
    members: int = 32,
    class_dim: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> MemberVisits:
    """Count the sub-networks that a training visits, and measure how much they disagree.

    Use it to see what "dropout trains 2^n networks" means for a model: a training of e epochs over n rows draws e x n
    masks. They are drawn here as training draws them: for each row anew, each unit by itself, at its site's rate.

    Args:
        model: any module with dropout.
        x: rows, (rows, ...), on which members' predictions are compared: a tensor, an array, a table, a mapping or
            tuple of them, or a DataLoader, of whose batches the model takes what it has arguments for.
        task: "classification": a prediction is the class with the highest output; "regression": the outputs.
        draws: masks to draw: epochs times rows of the training in question.
        masks: masks of a training, which are counted in place of drawn ones: blocks of path -> bool (rows, units),
            such as one block for each step. Keys give them again at any time: `puredrop.keep_mask`.
        members: number of members whose predictions are compared.
        class_dim: dimension of the classes in the outputs: -1 for (rows, time, classes). By default 1; outputs of
            three dimensions or more need it.
        seed: of the masks.
        batch_size: rows at once.

    Returns:
        Counts, frequencies and the disagreement; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached; for masks of other
            sites or units.

    Reference: Srivastava et al.: Dropout (JMLR 2014).

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(6, 3))
    >>> found = explain.member_visits(net, torch.randn(10, 4), draws=10_000)
    >>> found.units, found.distinct
    (6, 64)
    """
    checked_number("draws", draws)
    checked_number("members", members, 3)
    check_task(task)
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    if task == "classification":
        prepared = resolve_class_dim(prepared, class_dim)
    blocks = _drawn(prepared, draws) if masks is None else _replayed(prepared, masks)
    draws, distinct, kept = _counted(prepared, blocks)
    same = math.prod((use.p**2 + (1 - use.p) ** 2) ** use.units for use in prepared.uses)
    with prepared.instrument() as runner:
        parts = [runner.members(batch, range(members), is_shared=True).cpu() for batch in prepared.batches]
    value, error = _disagreement(torch.cat(parts, 1), task == "classification")
    rates = {use.place: use.p for use in prepared.uses}
    repeats = draws * (draws - 1) / 2 * same
    return MemberVisits(
        prepared.units, draws, distinct, repeats, kept, rates, value, error, members, task, prepared.skipped
    )


measure = member_visits


def _drawn(prepared: PreparedModel, draws: int) -> Iterator[list[Tensor]]:
    """Draw masks, one for each of so many rows, as blocks: a bool (rows, units) for each use."""
    members = MemberMasks(prepared.seed, is_shared=False, balanced=False)
    for first in range(0, draws, _AT_ONCE):
        rows = min(_AT_ONCE, draws - first)
        yield [_keep(members, use, first, rows) for use in prepared.uses]


def _replayed(prepared: PreparedModel, masks: Iterable[Mapping[str, Tensor]]) -> Iterator[list[Tensor]]:
    """Check the masks of a training, and give them as blocks."""
    for block in masks:
        parts = [block.get(use.place) for use in prepared.uses]
        sizes = [None if part is None else tuple(part.shape[1:]) for part in parts]
        expected = {use.place: (use.units,) for use in prepared.uses}
        if sizes != list(expected.values()) or len(block) != len(parts):
            shapes = {place: tuple(part.shape[1:]) for place, part in block.items()}
            raise ValueError(f"masks has {shapes} of each row; expected {expected}")
        yield [part.bool().cpu() for part in parts if part is not None]


def _counted(prepared: PreparedModel, blocks: Iterable[list[Tensor]]) -> tuple[int, int, dict[str, Tensor]]:
    """Count masks and different masks, and how often each unit was kept."""
    draws, distinct = 0, set[bytes]()
    kept = {use.place: torch.zeros(use.units, dtype=torch.float64) for use in prepared.uses}
    for parts in blocks:
        draws += len(parts[0])
        distinct.update(row.tobytes() for row in np.packbits(torch.cat(parts, 1).numpy(), axis=1))
        for use, keep in zip(prepared.uses, parts, strict=True):
            kept[use.place] += keep.sum(0)
    return draws, len(distinct), {place: count / max(1, draws) for place, count in kept.items()}


def _keep(members: MemberMasks, use: SiteUse, first: int, rows: int) -> Tensor:
    masks = members.masks(use.path, use.call)
    return masks.keep([0], use.p, rows * use.units, first * use.units, torch.device("cpu")).view(rows, use.units)


def _disagreement(outputs: Tensor, is_class: bool) -> tuple[float, float]:
    """Return the disagreement over all pairs of members, and the jackknife's error over members."""
    predicted, number = (outputs.argmax(2) if is_class else outputs.double()), len(outputs)
    pairs = torch.zeros(number, number, dtype=torch.float64)
    for a in range(number):
        away = (predicted != predicted[a]).double() if is_class else (predicted - predicted[a]).square()
        pairs[a] = away.flatten(1).mean(1)

    def value(of: Tensor) -> float:
        mean = float(of.sum()) / (len(of) * (len(of) - 1))
        return mean if is_class else math.sqrt(mean)

    kept = [torch.arange(number) != member for member in range(number)]
    without = torch.tensor([value(pairs[rows][:, rows]) for rows in kept])
    return value(pairs), float(jackknife_error(without))


def section(case: Case) -> Section:
    """Draw the network, and say how many sub-networks its training visited."""
    s = case.subject
    masks = None if s.masks is None else s.masks()
    visits = measure(case.prepared, s.x, task=s.task, draws=s.draws, masks=masks, members=32, seed=s.seed)
    plan = drawing(case.prepared, case.outputs[0].numel())
    seen = "all of them different" if visits.distinct == visits.draws else f"{visits.distinct:,} of them different"
    worst = max(visits.worst(path) for path in visits.keep)
    is_class = visits.task == "classification"
    apart = f"{visits.disagreement:.1%}" if is_class else f"{visits.disagreement:.3g}"
    what = "of rows two sub-networks predict another class" if is_class else "(rms) is between two of their predictions"
    sentence = (
        f"In training each of {visits.units:,} units is dropped at random, for every row and step anew: one of "
        f"{_power_of_two(visits.units)} sub-networks that share their weights. In eval mode every unit works."
    )
    drawn = f"{visits.draws:,} masks were drawn as training draws them"
    if masks is not None:
        drawn = f"Training used {visits.draws:,} masks, drawn again here from seed and step"
    how = (
        f"The button steps through real members, whose masks come from their seed and number; the drawing shows a few "
        f"of each site's units. {drawn}: {seen}; no unit was kept "
        f"more or less often than its rate says, up to {worst:.1f} standard errors. On {apart} {what} "
        f"({visits.members} members)."
    )
    if plan["more"]:
        how += f" The drawing leaves out {plan['more']} more sites."
    return QUESTION.answer(sentence, _power_of_two(visits.units).split(" ")[0], "sub-networks", how, drawing=plan)


def drawing(prepared: PreparedModel, outputs: int) -> dict[str, Any]:
    """Return the columns of a drawing from inputs over sites to outputs, and members' masks of the units shown.

    Args:
        prepared: the model and its data.
        outputs: of a row.

    Returns:
        A dict for JSON: `columns`, each with `name`, `units` and `shown`; `members`, for each column that drops which
        of its shown units are kept, and how many of all; None stands for columns where nothing drops.
    """
    members, uses = MemberMasks(prepared.seed, is_shared=True, balanced=False), prepared.uses[:_COLUMNS]
    inputs = prepared.batches[0].tensors[0][0].numel()
    columns: list[dict[str, Any]] = [{"name": "inputs", "units": inputs, "shown": min(inputs, _SHOWN)}]
    for use in uses:
        columns.append(
            {"name": f"{use.place or 'model'}, p={use.p:g}", "units": use.units, "shown": min(use.units, _SHOWN)}
        )
    columns.append({"name": "outputs", "units": outputs, "shown": min(outputs, _SHOWN)})
    drawn: list[list[dict[str, Any] | None]] = [[None] for _ in range(_DRAWN_MEMBERS)]
    for use in uses:
        masks = members.masks(use.path, use.call).keep(range(_DRAWN_MEMBERS), use.p, use.units, 0, torch.device("cpu"))
        for kept, keep in zip(drawn, masks, strict=True):
            kept.append({"shown": keep[:_SHOWN].tolist(), "kept": int(keep.sum())})
    return {"columns": columns, "members": [[*kept, None] for kept in drawn], "more": len(prepared.uses) - len(uses)}


def _power_of_two(units: int) -> str:
    """Return 2^n as text, and for a large n the power of ten that is nearest."""
    return f"2^{units}" + (f" ≈ 10^{units * math.log10(2):.0f}" if units > 20 else f" = {2**units:,}")
