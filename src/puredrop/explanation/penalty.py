"""What dropout adds to the loss: measured, by the Gauss-Newton approximation, and their ratio."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._loss import Loss, check, is_squared, root
from puredrop.members.inputs import checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output
from puredrop.members.prepared import (
    PreparedModel,
    TargetedBatches,
    drop_only_at,
    flatten_units,
    keep_all,
    ones_mask,
    prepare,
    probe_vectors,
)
from puredrop.members.sites import Intervention, SiteUse
from puredrop.report.figures import Figure
from puredrop.rng import Key

__all__ = ["Penalty", "SitePenalty", "penalty"]

_ROUNDING = 1e-4
"""By what share a float32 network may miss a linear law that it follows."""


@dataclass(frozen=True)
class SitePenalty:
    """One site's part.

    Args:
        path: of the site, with a number behind it where it is used again.
        p: its rate.
        units: float64, each unit's part by the approximation, loss units, in the order of the site's elements.
        measured: what this site alone adds, with the others off; None where that was not asked for.
        standard_error: of it, over masks.
    """

    path: str
    p: float
    units: Tensor
    measured: float | None = None
    standard_error: float | None = None

    @property
    def gauss_newton(self) -> float:
        """Sum over units."""
        return float(self.units.sum())


@dataclass(frozen=True)
class Penalty:
    """What dropout adds to the loss of these rows at these weights.

    Every number is a mean over rows, in the unit of the loss (nats of a cross entropy).

    Args:
        loss: without dropout, one pass in eval mode.
        measured: mean loss under masks less `loss`: the truth.
        standard_error: of it, over masks; 0 where all masks were run.
        gauss_newton_error: of the approximation, over probes; 0 where each output had one of its own.
        is_exact: whether the approximation is the truth itself: squared loss of outputs that are linear in the masks.
        sites: the parts.
        members: how many masks a row; probes: how many products with the transposed Jacobian of a batch.
        rows: of the data.
        skipped: path of what drops and was off -> why.
    """

    loss: float
    measured: float
    standard_error: float
    gauss_newton_error: float
    is_exact: bool
    sites: tuple[SitePenalty, ...]
    members: int
    probes: int
    rows: int
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def gauss_newton(self) -> float:
        """½ρ Σ diag(JᵀHJ) h², the approximation."""
        return sum(site.gauss_newton for site in self.sites)

    @property
    def ratio(self) -> float:
        """The approximation over the truth; NaN where the truth is 0."""
        return self.gauss_newton / self.measured if self.measured else math.nan

    @property
    def ratio_error(self) -> float:
        """Standard error of the ratio, by its derivatives."""
        if not self.measured:
            return math.nan
        return math.hypot(self.gauss_newton_error, self.ratio * self.standard_error) / abs(self.measured)

    def __str__(self) -> str:
        is_all = self.members == 2 ** sum(len(site.units) for site in self.sites)
        of = "all masks" if is_all else f"{self.members} masks a row"
        lines = [
            f"dropout adds {self.measured:.4g} ± {self.standard_error:.2g} to a loss of {self.loss:.4g} "
            f"({self.rows} rows, {of}); Gauss-Newton says {self.gauss_newton:.4g} ± {self.gauss_newton_error:.2g}, "
            f"{self.ratio:.2f} ± {self.ratio_error:.2g} of it{' (exact here)' if self.is_exact else ''}"
        ]
        for site in self.sites:
            alone = ""
            if site.measured is not None and site.standard_error is not None:
                alone = f", alone measured {site.measured:.4g} ± {site.standard_error:.2g}"
            lines.append(f"  {site.path}: p={site.p:g}, Gauss-Newton {site.gauss_newton:.4g}{alone}")
        lines += [f"  not part of it: {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Measured beside approximated, of all sites together and, where that was asked for, of each alone."""
        alone = [site for site in self.sites if site.measured is not None]
        names = ["all sites", *(f"{site.path} alone" for site in alone)]
        truth = [self.measured, *(float(site.measured or 0) for site in alone)]
        errors = [1.96 * self.standard_error, *(1.96 * float(site.standard_error or 0) for site in alone)]
        guess = [self.gauss_newton, *(site.gauss_newton for site in alone)]
        traces: list[dict[str, Any]] = [
            {"type": "bar", "x": names, "y": truth, "name": "measured", "marker": {"color": "@dropout"},
             "error_y": {"array": errors, "thickness": 1.5}, "hovertemplate": "%{x}: %{y:.4g}<extra>measured</extra>"},
            {"type": "bar", "x": names, "y": guess, "name": "Gauss-Newton", "marker": {"color": "@none"},
             "hovertemplate": "%{x}: %{y:.4g}<extra>Gauss-Newton</extra>"},
        ]  # fmt: skip
        alt = "what dropout adds to the loss, measured and by Gauss-Newton: " + "; ".join(
            f"{name} {a:.4g} and {b:.4g}" for name, a, b in zip(names, truth, guess, strict=True)
        )
        yaxis = {"title": {"text": "added to the loss"}, "rangemode": "tozero"}
        return Figure(alt, traces, {"xaxis": {"title": {"text": "dropout at"}}, "yaxis": yaxis, "barmode": "group"})


def penalty(
    model: Module,
    x: Any,
    y: Any,
    loss: Loss,
    *,
    members: int = 64,
    probes: int = 64,
    per_site: bool = False,
    seed: int = 0,
    sample_dim: int = 0,
    batch_size: int = 1024,
) -> Penalty:
    """Measure what dropout adds to the loss, and what the Gauss-Newton approximation says it adds.

    The truth is the mean loss under masks less the loss of one pass with every unit active; the model is in eval mode
    but for dropout. By the approximation dropout is a penalty ½ρ Σ_j (JᵀHJ)_jj h_j² over its units, ρ = p/(1-p), J the
    Jacobian of the outputs in the units' factors, H the curvature of the loss. No Jacobian is formed: with a noise ε of
    ±1 and H = SSᵀ, ½ρ Σ(h∘JᵀSε)² has that mean; where a row has no more than `probes` outputs, an ε for each of them
    gives the sum without error and sooner. Costs a forward and at most `probes` backward passes to the first site, and
    `members` forward passes from there on; with `per_site`, the latter once more for each site. Memory is that of the
    activations of `batch_size` rows.

    Args:
        model: trained, any module.
        x: rows, as `DropoutEnsemble.predict` takes them; two at least.
        y: what belongs to them, (rows, ...).
        loss: (outputs, y) -> mean over rows, such as `torch.nn.functional.cross_entropy`.
        members: masks of each row, for the truth; up to 12 units all are run.
        probes: for the approximation, at most.
        per_site: measure each site alone, too.
        seed: of masks and probes.
        sample_dim: dimension of the rows in what the model is given.
        batch_size: rows at once.

    Returns:
        The penalty; it prints, and draws itself.

    Raises:
        TypeError, ValueError: for a loss that is no mean over rows, classes that the model does not have, fewer than
            two rows, or a model of which no dropout is reached.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013); Wei, Kakade and Ma:
        The implicit and explicit regularization effects of dropout (ICML 2020).

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> found = penalty(net, torch.randn(100, 4), torch.randint(3, (100,)), torch.nn.functional.cross_entropy)
    >>> 0 < found.measured < 1, 0.5 < found.ratio < 2
    (True, True)
    """
    checked_number("members", members, 2)
    checked_number("probes", probes, 2)
    prepared = prepare(model, x, seed=seed, sample_dim=sample_dim, batch_size=batch_size)
    parts = prepared.with_targets(y)
    with prepared.instrument() as instrumented:
        base = _base(prepared, instrumented, parts, loss)
        truth, error = _under_masks(prepared, instrumented, parts, loss, members)
        is_exact = is_squared(loss) and prepared.is_per_row and _is_linear(prepared, instrumented)
        units, spread, products = _gauss_newton(
            prepared, instrumented, parts, loss, sys.maxsize if is_exact else probes
        )
        sites = [SitePenalty(use.place, use.p, part) for use, part in zip(prepared.uses, units, strict=True)]
        for i, site in enumerate(sites if per_site else []):
            value, noise = _under_masks(prepared, instrumented, parts, loss, members, drop_only_at(site.path))
            sites[i] = replace(site, measured=value - base, standard_error=noise)
    number = 2**prepared.units if prepared.can_list else members
    return Penalty(
        base, truth - base, error, spread, is_exact, tuple(sites), number, products, prepared.rows, prepared.skipped
    )


def _base(prepared: PreparedModel, instrumented: InstrumentedModel, parts: TargetedBatches, loss: Loss) -> float:
    """The loss of one pass, every unit active."""
    total = 0.0
    for batch, y in parts:
        outputs = prepared.forward(instrumented, batch, keep_all)
        check(loss, outputs, y)
        total += batch.rows * float(loss(outputs, y))
    return total / prepared.rows


def _under_masks(
    prepared: PreparedModel,
    instrumented: InstrumentedModel,
    parts: TargetedBatches,
    loss: Loss,
    members: int,
    intervention: Intervention | None = None,
) -> tuple[float, float]:
    """The mean loss over masks, and its standard error."""
    totals, first = torch.zeros(1 if prepared.can_list else members, dtype=torch.float64), 0
    for batch, y in parts:
        read = _of(loss, y)
        if prepared.can_list:
            losses = prepared.mean_of_all(instrumented, batch, read, intervention)
        else:
            losses = prepared.members(instrumented, batch, range(members), read, first=first, intervention=intervention)
        totals += batch.rows / prepared.rows * losses.double().cpu()
        first += batch.rows
    return float(totals.mean()), 0.0 if prepared.can_list else float(totals.std()) / math.sqrt(members)


def _of(loss: Loss, y: Tensor) -> Callable[[Any], Tensor]:
    return lambda output: loss(main_output(output), y)


def _gauss_newton(
    prepared: PreparedModel, instrumented: InstrumentedModel, parts: TargetedBatches, loss: Loss, most: int
) -> tuple[list[Tensor], float, int]:
    """Each unit's part by use, float64, the standard error of the whole, and the number of products.

    Args:
        probe, drive: the open model.
        parts, loss: what it is judged by.
        most: how many products; where rows have no more outputs, one for each of those, and then there is no error.
    """
    generator = torch.Generator().manual_seed(int(Key(prepared.seed).fold_in("probes")))
    units, variance = [torch.zeros(use.units, dtype=torch.float64) for use in prepared.uses], 0.0
    for batch, y in parts:
        leaves: list[tuple[Tensor, int | None]] = []
        with torch.enable_grad():
            outputs = prepared.forward(instrumented, batch, _leaving(leaves))
        multiply, share = root(loss, outputs, y), batch.rows / prepared.rows
        each, number, is_drawn = probe_vectors(outputs, most, generator, can_sum=prepared.is_per_row)
        estimates = torch.zeros(number, dtype=torch.float64)
        for at, noise in enumerate(each):
            slopes = torch.autograd.grad(outputs, [leaf for leaf, _ in leaves], multiply(noise), retain_graph=True)
            for use, total, slope, (_, dim) in zip(prepared.uses, units, slopes, leaves, strict=True):
                squares = flatten_units(slope, batch.rows, dim).square().sum(0).double().cpu()
                part = share * 0.5 * use.p / (1 - use.p) * squares
                total += part / number if is_drawn else part
                estimates[at] += part.sum()
        variance += float(estimates.var()) / number if is_drawn else 0.0
    return units, math.sqrt(variance), number


def _leaving(leaves: list[tuple[Tensor, int | None]]) -> Intervention:
    """A factor for each decision, with gradients, and where its rows lie."""

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if not 0 < use.p < 1:
            return input
        leaf = ones_mask(use, input, dim).requires_grad_()
        leaves.append((leaf, dim))
        return input * leaf

    return intervention


def _is_linear(prepared: PreparedModel, instrumented: InstrumentedModel) -> bool:
    """Whether outputs are affine in all factors together: f(1 + a) + f(1 + b) = f(1 + a + b) + f(1), on a few rows."""
    batch = prepared.batches[0].chosen(torch.arange(min(8, prepared.batches[0].rows)))

    def at(a: bool, b: bool) -> Tensor:
        """At the ones, moved by either of two random points."""
        generator = torch.Generator().manual_seed(int(Key(prepared.seed).fold_in("linear")))

        def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            ones = ones_mask(use, input, dim)
            one, two = (torch.rand(ones.shape, generator=generator).to(ones) for _ in range(2))
            return input * (ones + a * one + b * two)

        return prepared.forward(instrumented, batch, intervention).double()

    here, one, two, both = at(False, False), at(True, False), at(False, True), at(True, True)
    size = float((one - here).abs().max() + (two - here).abs().max())
    return float((one + two - here - both).abs().max()) <= _ROUNDING * size
