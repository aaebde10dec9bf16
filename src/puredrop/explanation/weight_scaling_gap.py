"""The distance of one pass from the two means of the 2^n sub-networks for which it stands, and its origin by site."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Module

from puredrop.explanation._inputs import check_task, resolve_class_dim
from puredrop.explanation._result import Result
from puredrop.explanation.averages import Averages
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import Batch, checked_number
from puredrop.members.outputs import probabilities
from puredrop.members.prepared import PreparedModel, Runner, drop_only_at, flatten_units, keep_all, ones_mask, prepare
from puredrop.members.sites import Intervention, SiteUse
from puredrop.report.figures import Figure, axis, bars, error_bars
from puredrop.report.intervals import jackknife_error
from puredrop.report.section import Section, signed

__all__ = ["QUESTION", "Distance", "LeaveOneOut", "WeightScalingGap", "measure", "section", "weight_scaling_gap"]

QUESTION = Question("one-pass", "Does one pass stand for all of them?")
_GROUPS = 8
_MOST_UNITS = 2048
"""Up to so many units one forward is made for each."""


@dataclass(frozen=True, repr=False)
class Distance(Result):
    """A root mean square difference over rows and outputs, without what chance adds to it.

    Args:
        value: in the unit of the outputs (probabilities from 0 to 1).
        standard_error: over masks; 0 where all masks were run.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`, one row."""
        return {"value": [self.value], "standard_error": [self.standard_error]}


@dataclass(frozen=True, repr=False)
class LeaveOneOut(Result):
    """The gap as n + 1 passes predict it, each without one unit: exact to first order in p.

    Args:
        values: float64 like the outputs: p Σ_j [f(x without j) - f(x) + x_j ∂_j f].
        size: their root mean square.
        alignment: cosine of the angle to the measured gap, whose length is taken without its noise: 1 if they agree.
    """

    values: Tensor
    size: float
    alignment: float

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`, one row: size and alignment."""
        return {"size": [self.size], "alignment": [self.alignment]}

    def __str__(self) -> str:
        return (
            f"leaving one unit out (first order in p) says {self.size:.4g}, alignment {self.alignment:.2f} with what "
            "was measured"
        )


@dataclass(frozen=True, repr=False)
class WeightScalingGap(Result):
    """One pass compared with the means of the sub-networks: what `puredrop.explain.weight_scaling_gap` returns.

    Args:
        one_pass, arithmetic: float64, shaped like the outputs: probabilities of one pass and their mean over masks in
            a classification, else outputs.
        geometric: of a classification, the softmax of the mean logits, which is the normalised geometric mean.
        outputs: float64, shaped like the outputs: mean outputs (logits) over masks less those of one pass.
        to_arithmetic, to_geometric: root mean square distance of one pass from the two means.
        of_outputs: the size of `outputs`.
        sites: path of a site -> the size of that gap where it alone drops; empty with per_site=False.
        leave_one_out: what first order in p predicts of `outputs`; None for more than 2048 units, or where torch has
            no forward-mode derivative (recurrent layers).
        members: masks of each row, or 2^n where all were run.
        task: "classification" or "regression".
        skipped: path of a module or call that drops and was off -> the reason.
    """

    one_pass: Tensor
    arithmetic: Tensor
    geometric: Tensor | None
    outputs: Tensor
    to_arithmetic: Distance
    to_geometric: Distance | None
    of_outputs: Distance
    sites: dict[str, Distance]
    leave_one_out: LeaveOneOut | None
    members: int
    task: Literal["classification", "regression"]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        is_class = self.task == "classification"
        what, raw = ("probability", "logits") if is_class else ("output", "outputs")
        lines = [f"one pass is {self.to_arithmetic} ({what}, rms) from the arithmetic mean of the sub-networks"]
        if self.to_geometric is not None:
            lines[0] += f", {self.to_geometric} from their geometric mean"
        lines.append(f"mean {raw} over masks less those of one pass: {self.of_outputs} (rms)")
        lines += [f"  {path} alone: {distance}" for path, distance in self.sites.items()]
        if self.leave_one_out is not None:
            lines.append(str(self.leave_one_out))
        lines += [f"  not part of it: {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw how far one pass is from the mean, by the site that alone drops."""
        names = ["all sites", *(f"{path} alone" for path in self.sites)]
        distances = [self.of_outputs, *self.sites.values()]
        errors = error_bars([distance.standard_error for distance in distances])
        raw = "logits" if self.task == "classification" else "outputs"
        values = [distance.value for distance in distances]
        axes = {"xaxis": axis("dropout at"), "yaxis": axis(f"gap of mean {raw} (rms)", rangemode="tozero")}
        traces = [bars(names, values, "@dropout", "%{x}: %{y:.4g}", error_y=errors)]
        return Figure(str(self), traces, {**axes, "showlegend": False})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the gap of all sites, then of each site alone."""
        distances = [self.of_outputs, *self.sites.values()]
        return {
            "path": ["all sites", *self.sites],
            "gap": [distance.value for distance in distances],
            "standard_error": [distance.standard_error for distance in distances],
        }


def weight_scaling_gap(
    model: Module | PreparedModel,
    x: Any,
    *,
    task: Literal["classification", "regression"] = "classification",
    members: int = 512,
    per_site: bool = True,
    class_dim: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> WeightScalingGap:
    """Measure how far one pass in eval mode is from the means for which it stands, and where the gap arises.

    Use it to decide whether eval mode is good enough or sampling members is worth its cost. One pass equals the
    normalised geometric mean of the sub-networks exactly where logits are linear in each mask alone; it hardly ever
    equals the arithmetic mean, which sampling members gives. Up to 12 units all masks are run; otherwise members, one
    mask for each row, in 8 groups from which errors come. Up to 2048 units a forward for each unit is added.

    Args:
        model: trained, any module.
        x: rows, (rows, ...), two at least: a tensor, an array, a table, a mapping or tuple of them, or a DataLoader,
            of whose batches the model takes what it has arguments for.
        task: "classification": probabilities are averaged; "regression": outputs are.
        members: masks of each row, a multiple of 8.
        per_site: whether each site is also measured alone, with as many members.
        class_dim: dimension of the classes in the outputs: -1 for (rows, time, classes). By default 1; outputs of
            three dimensions or more need it.
        seed: of the masks.
        batch_size: rows at once.

    Returns:
        The means, distances with standard errors, and the sites they come from; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached.

    Reference: Baldi and Sadowski: Understanding dropout (NeurIPS 2013); Goodfellow, Bengio and Courville: Deep learning
        (2016), section 7.12.

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(10, 3))
    >>> found = explain.weight_scaling_gap(net, torch.randn(20, 10))
    >>> found.to_geometric.value < 1e-6 < found.to_arithmetic.value
    True
    """
    check_task(task)
    checked_number("members", members, _GROUPS)
    if members % _GROUPS:
        raise ValueError(f"members is {members}; expected a multiple of {_GROUPS}, the groups from which errors come")
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    if task == "classification":
        prepared = resolve_class_dim(prepared, class_dim)
    averaged = (lambda z: probabilities(z, 1)) if task == "classification" else (lambda z: z)
    places = [use.place for use in prepared.uses]
    with prepared.instrument() as runner:
        one_pass = torch.cat([_one_pass(runner, batch) for batch in prepared.batches])
        raw, means = _under_masks(runner, members, averaged)
        gap, whole = raw.mean(0) - one_pass, _distance(raw - one_pass)
        sites = {places[0]: whole} if len(places) == 1 else {}
        if per_site and not sites:
            sites = {
                place: _distance(_under_masks(runner, members, averaged, drop_only_at(place))[0] - one_pass)
                for place in places
            }
        first_order = _leave_one_out(runner, gap, whole.value) if prepared.units <= _MOST_UNITS else None
    geometric, to_geometric, as_given = None, None, prepared.as_given
    if task == "classification":
        geometric = as_given(averaged(raw.mean(0)))
        to_geometric = _distance(_geometric(raw) - averaged(one_pass))
    if first_order is not None:
        first_order = replace(first_order, values=as_given(first_order.values))
    return WeightScalingGap(
        as_given(averaged(one_pass)), as_given(means.mean(0)), geometric, as_given(gap),
        _distance(means - averaged(one_pass)), to_geometric, whole, sites, first_order,
        2**prepared.units if prepared.can_list else members, task, prepared.skipped,
    )  # fmt: skip


measure = weight_scaling_gap


def _one_pass(runner: Runner, batch: Batch) -> Tensor:
    return runner.forward(batch, keep_all).double().cpu()


def _under_masks(
    runner: Runner,
    members: int,
    averaged: Callable[[Tensor], Tensor],
    intervention: Intervention | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean outputs and their averaged form, (groups of members, rows, ...); one group if all masks are run."""
    raws, means, first = [], [], 0
    for batch in runner.prepared.batches:
        if runner.prepared.can_list:
            raw, mean = (
                runner.mean_of_all(batch, read, intervention)
                for read in (runner.prepared.read, lambda output: averaged(runner.prepared.read(output)))
            )
            raws.append(raw.unsqueeze(0))
            means.append(mean.unsqueeze(0))
            continue
        size = members // _GROUPS
        groups = [
            runner.members(batch, range(start, start + size), first=first, intervention=intervention).double().cpu()
            for start in range(0, members, size)
        ]
        raws.append(torch.stack([group.mean(0) for group in groups]))
        flat = [averaged(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in groups]
        means.append(torch.stack([values.mean(0) for values in flat]))
        first += batch.rows
    return torch.cat(raws, 1), torch.cat(means, 1)


def _geometric(raw: Tensor) -> Tensor:
    """Return the softmax of the mean logits as one value for each group of members, without the bias of few members.

    The values are the jackknife's pseudo-values: a softmax is curved, so that the softmax of a group's mean is off by
    half the variance times the curvature, which would pass for a distance.
    """
    groups = len(raw)
    if groups == 1:
        return probabilities(raw, 2)
    without = (raw.sum(0) - raw) / (groups - 1)
    return groups * probabilities(raw.mean(0), 1) - (groups - 1) * probabilities(without, 2)


def _distance(gaps: Tensor) -> Distance:
    """Return the distance from each group's gap: products of different groups have no bias; the jackknife's error."""
    if len(gaps) == 1:
        return Distance(float(gaps.square().mean().sqrt()), 0.0)
    flat = gaps.flatten(1)
    whole = _squared(flat)
    without = torch.tensor([_squared(flat[torch.arange(len(flat)) != group]) for group in range(len(flat))])
    error = float(jackknife_error(without))
    value = math.sqrt(max(whole, 0.0))
    # The delta method gives the error of a root; where the square is smaller than its own error, the error's root.
    return Distance(value, error / (2 * value) if whole > error else math.sqrt(error))


def _squared(flat: Tensor) -> float:
    number = len(flat)
    return float((flat.sum(0).square() - flat.square().sum(0)).mean()) / (number * (number - 1))


def _leave_one_out(runner: Runner, measured: Tensor, length: float) -> LeaveOneOut | None:
    try:
        values = torch.cat([_first_order(runner, batch) for batch in runner.prepared.batches])
    except NotImplementedError:  # torch has no forward-mode derivative of some layers
        return None
    size = float(values.square().mean().sqrt())
    product = float((values * measured).mean())
    return LeaveOneOut(values, size, product / (size * length) if size * length else math.nan)


def _first_order(runner: Runner, batch: Batch) -> Tensor:
    """Compute p Σ_j [f(x without j) - f(x)] by a forward for each unit, and p Σ_j x_j ∂_j f by one."""
    with forward_ad.dual_level():

        def slope(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            ones = ones_mask(use, input, dim)
            output: Tensor = input * forward_ad.make_dual(ones, use.p * ones)
            return output

        tangent = forward_ad.unpack_dual(runner.forward(batch, slope)).tangent
    base = _one_pass(runner, batch)
    total: Tensor = torch.zeros_like(base) if tangent is None else tangent.double().cpu()
    for use in runner.prepared.uses:
        for unit in range(use.units):
            without = runner.forward(batch, _leaving_out(use.place, unit, batch.rows)).double().cpu()
            total = total + use.p * (without - base)
    return total


def _leaving_out(place: str, unit: int, rows: int) -> Intervention:
    """Return the intervention under which one unit of one use is 0, in every row."""

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if use.place != place:
            return input
        ones = ones_mask(use, input, dim)
        numbers = torch.arange(ones.numel(), device=ones.device).view(ones.shape)
        return input * ones.flatten().index_fill(0, flatten_units(numbers, rows, dim)[:, unit], 0).view(ones.shape)

    return intervention


def section(case: Case) -> Section:
    """Say how far one pass is from the means, and what averaging members does to the score."""
    s, means = case.subject, case.results["averages"]
    members = 8 * max(1, s.members // 2)
    gap = measure(case.prepared, s.x, task=s.task, members=members, per_site=case.per_site, seed=s.seed)
    case.results["weight_scaling_gap"] = gap
    what = "probabilities" if gap.task == "classification" else "outputs"
    low, high = (signed(end) for end in means.difference[1:])
    changes = f"{signed(means.difference[0])} [{low}, {high}]"
    says = changes if means.excludes_zero else f"no difference found [{low}, {high}]"
    number = gap.to_arithmetic.value
    sentence = (
        f"Almost: its {what} are {number:.4f} (rms) from the sub-networks' mean. Averaging {means.numbers[-1]} members "
        f"changes the {means.name} from {means.one_pass:.4f} to {means.score[-1]:.4f}: {says}."
    )
    figures = (means.figure(), gap.figure())
    return QUESTION.answer(sentence, f"{number:.4f}", f"rms between {what}", _how(gap, means), *figures)


def _how(gap: WeightScalingGap, means: Averages) -> str:
    is_class = gap.task == "classification"
    what = "probabilities" if is_class else "outputs"
    distances = f"{gap.to_arithmetic} from the arithmetic mean"
    if gap.to_geometric is not None:
        distances += (
            f", {gap.to_geometric} from the normalised geometric mean, which it is where logits are linear in masks"
        )
    masks = "all" if gap.members > 10**6 else f"{gap.members}"
    how = f"{masks} masks of each row: one pass is {distances} ({what}, rms ± standard error). "
    alone = "; ".join(f"{path} alone {distance}" for path, distance in gap.sites.items())
    if alone:
        how += f"{'Before the softmax, by' if is_class else 'By'} the site that drops: {alone}. "
    if gap.leave_one_out is not None:
        aligned = gap.leave_one_out.alignment
        angle = "" if math.isnan(aligned) else f" (alignment {aligned:.2f})"
        how += f"Leaving one unit out, exact to first order in p, says {gap.leave_one_out.size:.4f}{angle}. "
    return how + (
        "Left: members are one sub-network for all rows; the band holds 80 % of disjoint groups of so many. The "
        f"interval of the difference is over {means.rows} rows of this one network."
    )
