"""How far one pass is from the two means of the 2^n networks for which it stands, and where that comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Module

from puredrop.members.inputs import Batch, checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output, probabilities
from puredrop.members.prepared import PreparedModel, drop_only_at, flatten_units, keep_all, ones_mask, prepare
from puredrop.members.sites import Intervention, SiteUse
from puredrop.report.figures import Figure
from puredrop.report.intervals import jackknife_error

__all__ = ["Distance", "LeaveOneOut", "WeightScalingGap", "weight_scaling_gap"]

_GROUPS = 8
_MOST_UNITS = 2048


@dataclass(frozen=True)
class Distance:
    """Root mean square of a difference over rows and outputs, what chance adds to it taken away.

    Args:
        value: in the unit of the outputs (probabilities from 0 to 1).
        standard_error: over masks; 0 where all were run.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


@dataclass(frozen=True)
class LeaveOneOut:
    """What n + 1 passes say of the gap, exact to first order in p.

    Args:
        values: float64 like the outputs: p Σ_j [f(x without j) - f(x) + x_j ∂_j f].
        size: its root mean square.
        alignment: cosine of the angle to the measured gap, whose length is taken without its noise: 1 for the same.
    """

    values: Tensor
    size: float
    alignment: float


@dataclass(frozen=True)
class WeightScalingGap:
    """One pass beside the means of all sub-networks.

    Args:
        one_pass, arithmetic: float64 (rows, ...), of probabilities in a classification, of outputs else.
        geometric: of a classification: the softmax of the mean logits, which is the normalised geometric mean.
        outputs: float64 (rows, ...), mean of what the model returns (logits) over masks less what one pass returns.
        to_arithmetic, to_geometric: how far one pass is from them.
        of_outputs: the size of `outputs`.
        sites: path -> the size of that gap with this site alone dropping; empty where that was not asked for.
        leave_one_out: what first order in p says of `outputs`; None for more than 2048 units, or where torch has no
            forward-mode derivative (recurrent layers).
        members: how many masks a row, or 2^n where all were run.
        task: what was averaged.
        skipped: path of what drops and was off -> why.
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
            found = self.leave_one_out
            lines.append(
                f"leaving one unit out (first order in p) says {found.size:.4g}, alignment {found.alignment:.2f} "
                "with what was measured"
            )
        lines += [f"  not part of it: {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """How far one pass is from the mean, by the site that alone drops."""
        names = ["all sites", *(f"{path} alone" for path in self.sites)]
        found = [self.of_outputs, *self.sites.values()]
        bars = {"array": [1.96 * one.standard_error for one in found], "thickness": 1.5}
        raw = "logits" if self.task == "classification" else "outputs"
        traces: list[dict[str, Any]] = [
            {"type": "bar", "x": names, "y": [one.value for one in found], "error_y": bars,
             "marker": {"color": "@dropout"}, "hovertemplate": "%{x}: %{y:.4g}<extra></extra>"}
        ]  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": "dropout at"}},
            "yaxis": {"title": {"text": f"gap of mean {raw} (rms)"}, "rangemode": "tozero"},
        }
        return Figure(str(self), traces, {**axes, "showlegend": False})


def weight_scaling_gap(
    model: Module,
    x: Any,
    *,
    task: Literal["classification", "regression"] = "classification",
    members: int = 512,
    per_site: bool = True,
    seed: int = 0,
    batch_size: int = 1024,
) -> WeightScalingGap:
    """Measure how far one pass in eval mode is from the means for which it stands, and where the gap arises.

    One pass is the normalised geometric mean of the sub-networks exactly where logits are linear in each mask alone; it
    is the arithmetic mean, which is what sampling members gives, hardly ever. Up to 12 units all masks are run;
    otherwise members, one mask for each row, in 8 groups from which errors come. A forward for each unit is made on top
    of that, up to 2048 units.

    Args:
        model: trained, any module; a classification has its classes in dimension 1.
        x: rows, as `DropoutEnsemble.predict` takes them; two at least.
        task: what is averaged.
        members: masks of each row, a multiple of 8.
        per_site: measure each site alone, too, with as many members.
        seed: of them.
        batch_size: rows at once.

    Returns:
        The means, distances with standard errors, and the sites they come from; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached.

    Reference: Baldi and Sadowski: Understanding dropout (NeurIPS 2013); Goodfellow, Bengio and Courville: Deep learning
        (2016), section 7.12.

    >>> net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(10, 3))
    >>> found = weight_scaling_gap(net, torch.randn(20, 10))
    >>> found.to_geometric.value < 1e-6 < found.to_arithmetic.value
    True
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task is {task!r}; expected 'classification' or 'regression'")
    checked_number("members", members, _GROUPS)
    if members % _GROUPS:
        raise ValueError(f"members is {members}; expected a multiple of {_GROUPS}, the groups from which errors come")
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    averaged = (lambda z: probabilities(z, 1)) if task == "classification" else (lambda z: z)
    places = [use.place for use in prepared.uses]
    with prepared.instrument() as instrumented:
        one = torch.cat([_plain(prepared, instrumented, batch) for batch in prepared.batches])
        raw, means = _under_masks(prepared, instrumented, members, averaged)
        gap, whole = raw.mean(0) - one, _distance(raw - one)
        sites = {places[0]: whole} if len(places) == 1 else {}
        if per_site and not sites:
            sites = {
                at: _distance(_under_masks(prepared, instrumented, members, averaged, drop_only_at(at))[0] - one)
                for at in places
            }
        first_order = (
            _leave_one_out(prepared, instrumented, gap, whole.value) if prepared.units <= _MOST_UNITS else None
        )
    geometric = to_geometric = None
    if task == "classification":
        geometric, to_geometric = averaged(raw.mean(0)), _distance(_geometric(raw) - averaged(one))
    return WeightScalingGap(
        averaged(one), means.mean(0), geometric, gap, _distance(means - averaged(one)), to_geometric, whole, sites,
        first_order, 2**prepared.units if prepared.can_list else members, task, prepared.skipped,
    )  # fmt: skip


def _plain(prepared: PreparedModel, instrumented: InstrumentedModel, batch: Batch) -> Tensor:
    return prepared.forward(instrumented, batch, keep_all).double().cpu()


def _under_masks(
    prepared: PreparedModel,
    instrumented: InstrumentedModel,
    members: int,
    averaged: Callable[[Tensor], Tensor],
    intervention: Intervention | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean outputs and mean of what is averaged: (groups of members, rows, ...), one group where all masks are run."""
    raws, means, first = [], [], 0
    for batch in prepared.batches:
        if prepared.can_list:
            raw, mean = (
                prepared.mean_of_all(instrumented, batch, read, intervention)
                for read in (main_output, lambda output: averaged(main_output(output)))
            )
            raws.append(raw.unsqueeze(0))
            means.append(mean.unsqueeze(0))
            continue
        size = members // _GROUPS
        groups = [
            prepared.members(instrumented, batch, range(start, start + size), first=first, intervention=intervention)
            .double()
            .cpu()
            for start in range(0, members, size)
        ]
        raws.append(torch.stack([group.mean(0) for group in groups]))
        means.append(torch.stack([averaged(one.flatten(0, 1)).unflatten(0, one.shape[:2]).mean(0) for one in groups]))
        first += batch.rows
    return torch.cat(raws, 1), torch.cat(means, 1)


def _geometric(raw: Tensor) -> Tensor:
    """Softmax of the mean logits, a value for each group of members, whose mean has not the bias of few members.

    These are the jackknife's pseudo-values: a softmax is curved, so that of a group's mean lies off by half the
    variance times the curvature, which would pass for a distance.
    """
    groups = len(raw)
    if groups == 1:
        return probabilities(raw, 2)
    without = (raw.sum(0) - raw) / (groups - 1)
    return groups * probabilities(raw.mean(0), 1) - (groups - 1) * probabilities(without, 2)


def _distance(gaps: Tensor) -> Distance:
    """From the gap of each group: products of different groups have no bias; the error is the jackknife's."""
    if len(gaps) == 1:
        return Distance(float(gaps.square().mean().sqrt()), 0.0)
    flat = gaps.flatten(1)
    whole = _squared(flat)
    without = torch.tensor([_squared(flat[torch.arange(len(flat)) != one]) for one in range(len(flat))])
    error = float(jackknife_error(without))
    value = math.sqrt(max(whole, 0.0))
    # The error of a root; where the square is lost in its own error, the root of that.
    return Distance(value, error / (2 * value) if whole > error else math.sqrt(error))


def _squared(flat: Tensor) -> float:
    number = len(flat)
    return float((flat.sum(0).square() - flat.square().sum(0)).mean()) / (number * (number - 1))


def _leave_one_out(
    prepared: PreparedModel, instrumented: InstrumentedModel, measured: Tensor, length: float
) -> LeaveOneOut | None:
    try:
        values = torch.cat([_first_order(prepared, instrumented, batch) for batch in prepared.batches])
    except NotImplementedError:  # torch's answer where it has no forward-mode derivative
        return None
    size = float(values.square().mean().sqrt())
    product = float((values * measured).mean())
    return LeaveOneOut(values, size, product / (size * length) if size * length else math.nan)


def _first_order(prepared: PreparedModel, instrumented: InstrumentedModel, batch: Batch) -> Tensor:
    """P Σ_j [f(x without j) - f(x)], each by a forward, and p Σ_j x_j ∂_j f, by one."""
    with forward_ad.dual_level():

        def slope(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            ones = ones_mask(use, input, dim)
            output: Tensor = input * forward_ad.make_dual(ones, use.p * ones)
            return output

        tangent = forward_ad.unpack_dual(prepared.forward(instrumented, batch, slope)).tangent
    base = _plain(prepared, instrumented, batch)
    total: Tensor = torch.zeros_like(base) if tangent is None else tangent.double().cpu()
    for use in prepared.uses:
        for unit in range(use.units):
            without = prepared.forward(instrumented, batch, _leaving_out(use.place, unit, batch.rows)).double().cpu()
            total = total + use.p * (without - base)
    return total


def _leaving_out(place: str, unit: int, rows: int) -> Intervention:
    """One unit of one use is 0, in every row."""

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if use.place != place:
            return input
        ones = ones_mask(use, input, dim)
        numbers = torch.arange(ones.numel(), device=ones.device).view(ones.shape)
        return input * ones.flatten().index_fill(0, flatten_units(numbers, rows, dim)[:, unit], 0).view(ones.shape)

    return intervention
