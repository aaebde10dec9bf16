"""The penalty that dropout adds to the loss: measured, by the Gauss-Newton approximation, and their ratio."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._inputs import prepare_with_targets, targets_and_loss
from puredrop.explanation._loss import Loss, check, curvature_root, is_squared
from puredrop.explanation._result import Result
from puredrop.explanation.l2_strength import l2_strength
from puredrop.explanation.ridge import Descent, Ridge, landing
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import checked_number
from puredrop.members.prepared import (
    PreparedModel,
    Runner,
    TargetedBatches,
    drop_only_at,
    flatten_units,
    keep_all,
    ones_mask,
    probe_vectors,
)
from puredrop.members.sites import Intervention, SiteUse
from puredrop.report.figures import Figure, axis, bars, error_bars
from puredrop.report.section import Section
from puredrop.rng import Key

__all__ = ["QUESTION", "Penalty", "SitePenalty", "measure", "penalty", "section"]

QUESTION = Question("l2", "Does it act like L2?")
_ROUNDING = 1e-4
"""The share by which a float32 network may miss a linear law that it follows."""


@dataclass(frozen=True, repr=False)
class SitePenalty(Result):
    """One site's part of a `Penalty`.

    Args:
        path: of the site, with a number after it where it is used again.
        p: its rate.
        units: float64 (units,), each unit's part by the approximation, in the unit of the loss, in the order of the
            site's elements.
        measured: what this site alone adds, with the others off; None with per_site=False.
        standard_error: of `measured`, over masks.
    """

    path: str
    p: float
    units: Tensor
    measured: float | None = None
    standard_error: float | None = None

    @property
    def gauss_newton(self) -> float:
        """The site's part by the approximation: the sum over its units."""
        return float(self.units.sum())

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the part of each unit by the approximation."""
        return {"unit": list(range(len(self.units))), "gauss_newton": self.units.tolist()}

    def __str__(self) -> str:
        alone = ""
        if self.measured is not None and self.standard_error is not None:
            alone = f", alone measured {self.measured:.4g} ± {self.standard_error:.2g}"
        return f"{self.path}: p={self.p:g}, Gauss-Newton {self.gauss_newton:.4g}{alone}"


@dataclass(frozen=True, repr=False)
class Penalty(Result):
    """The penalty that dropout adds to the loss of some rows, as `puredrop.explain.penalty` measures it.

    Every number is a mean over rows, in the unit of the loss (nats for cross entropy).

    Args:
        loss: loss of one pass in eval mode, without dropout.
        measured: mean loss under masks less `loss`: the truth.
        standard_error: standard error of `measured` over masks; 0 where all masks were run.
        gauss_newton_error: standard error of `gauss_newton` over probes; 0 where each output had a probe of its own.
        is_exact: whether the approximation equals the truth: squared loss of outputs that are linear in the masks.
        sites: the part of each site.
        members: number of masks for each row.
        probes: number of products with the transposed Jacobian for each batch.
        rows: number of rows of the data.
        skipped: path of a module or call that drops and was off -> the reason.
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
        """The approximation ½ρ Σ diag(JᵀHJ) h²."""
        return sum(site.gauss_newton for site in self.sites)

    @property
    def ratio(self) -> float:
        """The approximation divided by the truth; NaN where the truth is 0."""
        return self.gauss_newton / self.measured if self.measured else math.nan

    @property
    def ratio_error(self) -> float:
        """The standard error of the ratio, by the delta method."""
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
        lines += [f"  {site}" for site in self.sites]
        lines += [f"  not part of it: {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the measured and the approximated penalty of all sites and, with per_site=True, of each site alone."""
        alone = [site for site in self.sites if site.measured is not None]
        names = ["all sites", *(f"{site.path} alone" for site in alone)]
        truth = [self.measured, *(float(site.measured or 0) for site in alone)]
        errors = error_bars([self.standard_error, *(float(site.standard_error or 0) for site in alone)])
        guess = [self.gauss_newton, *(site.gauss_newton for site in alone)]
        hover = "%{x}: %{y:.4g}"
        traces = [
            bars(names, truth, "@dropout", hover, extra="measured", name="measured", error_y=errors),
            bars(names, guess, "@none", hover, extra="Gauss-Newton", name="Gauss-Newton"),
        ]
        alt = "what dropout adds to the loss, measured and by Gauss-Newton: " + "; ".join(
            f"{name} {a:.4g} and {b:.4g}" for name, a, b in zip(names, truth, guess, strict=True)
        )
        yaxis = axis("added to the loss", rangemode="tozero")
        return Figure(alt, traces, {"xaxis": axis("dropout at"), "yaxis": yaxis, "barmode": "group"})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the part of each site."""
        names = ("path", "p", "gauss_newton", "measured", "standard_error")
        return {name: [getattr(site, name) for site in self.sites] for name in names}


def penalty(
    model: Module | PreparedModel,
    x: Any,
    y: Any = None,
    loss: Loss | str | None = None,
    *,
    members: int = 64,
    probes: int = 64,
    per_site: bool = False,
    class_dim: int | None = None,
    seed: int = 0,
    sample_dim: int = 0,
    batch_size: int = 1024,
) -> Penalty:
    """Measure what dropout adds to the loss, and what the Gauss-Newton approximation says it adds.

    Use it to see how strongly dropout regularises a trained model, at which site, and how far "dropout is L2" holds.
    The truth is the mean loss under masks less the loss of one pass with every unit active; the model is in eval mode
    but for dropout. By the approximation dropout is a penalty ½ρ Σ_j (JᵀHJ)_jj h_j² over its units, ρ = p/(1-p), J the
    Jacobian of the outputs in the units' factors, H the curvature of the loss. No Jacobian is formed: with a noise ε of
    ±1 and H = SSᵀ, ½ρ Σ(h∘JᵀSε)² has that mean; where a row has no more than `probes` outputs, an ε for each of them
    gives the sum without error and sooner. Costs a forward and at most `probes` backward passes to the first site, and
    `members` forward passes from there on; with `per_site`, the latter once more for each site. Memory is that of the
    activations of `batch_size` rows.

    Args:
        model: trained, any module.
        x: rows, (rows, ...), two at least: a tensor, an array, a table, or a mapping or tuple of them; with y left
            out, a batch (x, y) or a DataLoader of such batches.
        y: targets of the rows, (rows, ...).
        loss: "cross_entropy", "mse_loss", or a function (outputs, y) -> mean over rows; by default "mse_loss" for
            floating-point y, else "cross_entropy".
        members: masks of each row, for the truth, 2 at least; up to 12 units all masks are run.
        probes: products for the approximation, at most.
        per_site: whether each site is also measured alone.
        class_dim: dimension of the classes in the outputs, which `loss` gets in dimension 1: -1 for (rows, time,
            classes). By default found from y for cross entropy, else outputs stay as they are.
        seed: of masks and probes.
        sample_dim: dimension of the rows in the model's inputs.
        batch_size: rows at once.

    Returns:
        The penalty, of all sites and by site and unit; it prints, and `figure()` draws it.

    Raises:
        TypeError, ValueError: for a loss that is no mean over rows, classes that the model does not have, fewer than
            two rows, or a model of which no dropout is reached.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013); Wei, Kakade and Ma:
        The implicit and explicit regularization effects of dropout (ICML 2020).

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> found = explain.penalty(net, torch.randn(100, 4), torch.randint(3, (100,)), "cross_entropy")
    >>> 0 < found.measured < 1, 0.5 < found.ratio < 2
    (True, True)
    """
    checked_number("members", members, 2)
    checked_number("probes", probes, 2)
    x, y, loss = targets_and_loss(x, y, loss)
    prepared, parts = prepare_with_targets(
        model, x, y, class_dim, loss, seed=seed, sample_dim=sample_dim, batch_size=batch_size
    )
    with prepared.instrument() as runner:
        base = _base(runner, parts, loss)
        truth, error = _under_masks(runner, parts, loss, members)
        is_exact = is_squared(loss) and prepared.is_per_row and _is_linear(runner)
        units, spread, products = _gauss_newton(runner, parts, loss, sys.maxsize if is_exact else probes)
        sites = [SitePenalty(use.place, use.p, part) for use, part in zip(prepared.uses, units, strict=True)]
        for i, site in enumerate(sites if per_site else []):
            value, noise = _under_masks(runner, parts, loss, members, drop_only_at(site.path))
            sites[i] = replace(site, measured=value - base, standard_error=noise)
    number = 2**prepared.units if prepared.can_list else members
    return Penalty(
        base, truth - base, error, spread, is_exact, tuple(sites), number, products, prepared.rows, prepared.skipped
    )


measure = penalty


def _base(runner: Runner, parts: TargetedBatches, loss: Loss) -> float:
    """Return the loss of one pass, every unit active."""
    total = 0.0
    for batch, y in parts:
        outputs = runner.forward(batch, keep_all)
        check(loss, outputs, y)
        total += batch.rows * float(loss(outputs, y))
    return total / runner.prepared.rows


def _under_masks(
    runner: Runner,
    parts: TargetedBatches,
    loss: Loss,
    members: int,
    intervention: Intervention | None = None,
) -> tuple[float, float]:
    """Return the mean loss over masks, and its standard error."""
    totals, first = torch.zeros(1 if runner.prepared.can_list else members, dtype=torch.float64), 0
    for batch, y in parts:
        read = _loss_of(runner.prepared, loss, y)
        if runner.prepared.can_list:
            losses = runner.mean_of_all(batch, read, intervention)
        else:
            losses = runner.members(batch, range(members), read, first=first, intervention=intervention)
        totals += batch.rows / runner.prepared.rows * losses.double().cpu()
        first += batch.rows
    return float(totals.mean()), 0.0 if runner.prepared.can_list else float(totals.std()) / math.sqrt(members)


def _loss_of(prepared: PreparedModel, loss: Loss, y: Tensor) -> Callable[[Any], Tensor]:
    return lambda output: loss(prepared.read(output), y)


def _gauss_newton(
    runner: Runner, parts: TargetedBatches, loss: Loss, most_products: int
) -> tuple[list[Tensor], float, int]:
    """Return each unit's part by use, float64, the standard error of their sum, and the number of products.

    Args:
        runner: the model, taken over.
        parts: batches with their targets.
        loss: a mean over rows.
        most_products: number of products, at most; rows with no more outputs get one for each output, without error.
    """
    generator = torch.Generator().manual_seed(int(Key(runner.prepared.seed).fold_in("probes")))
    units, variance = [torch.zeros(use.units, dtype=torch.float64) for use in runner.prepared.uses], 0.0
    for batch, y in parts:
        leaves: list[tuple[Tensor, int | None]] = []
        with torch.enable_grad():
            outputs = runner.forward(batch, _leaving(leaves))
        multiply, share = curvature_root(loss, outputs, y), batch.rows / runner.prepared.rows
        vectors, number, is_drawn = probe_vectors(outputs, most_products, generator, can_sum=runner.prepared.is_per_row)
        estimates = torch.zeros(number, dtype=torch.float64)
        for at, noise in enumerate(vectors):
            slopes = torch.autograd.grad(outputs, [leaf for leaf, _ in leaves], multiply(noise), retain_graph=True)
            for use, total, slope, (_, dim) in zip(runner.prepared.uses, units, slopes, leaves, strict=True):
                squares = flatten_units(slope, batch.rows, dim).square().sum(0).double().cpu()
                part = share * 0.5 * use.p / (1 - use.p) * squares
                total += part / number if is_drawn else part
                estimates[at] += part.sum()
        variance += float(estimates.var()) / number if is_drawn else 0.0
    return units, math.sqrt(variance), number


def _leaving(leaves: list[tuple[Tensor, int | None]]) -> Intervention:
    """Return the intervention that multiplies by a factor for each decision, and records the factors for gradients."""

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if not 0 < use.p < 1:
            return input
        leaf = ones_mask(use, input, dim).requires_grad_()
        leaves.append((leaf, dim))
        return input * leaf

    return intervention


def _is_linear(runner: Runner) -> bool:
    """Return whether outputs are affine in all factors: f(1 + a) + f(1 + b) = f(1 + a + b) + f(1), on a few rows."""
    batch = runner.prepared.batches[0].select(torch.arange(min(8, runner.prepared.batches[0].rows)))

    def at(a: bool, b: bool) -> Tensor:
        """Return the outputs at factors of one, moved by either of two random points."""
        generator = torch.Generator().manual_seed(int(Key(runner.prepared.seed).fold_in("linear")))

        def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            ones = ones_mask(use, input, dim)
            point_a, point_b = (torch.rand(ones.shape, generator=generator).to(ones) for _ in range(2))
            return input * (ones + a * point_a + b * point_b)

        return runner.forward(batch, intervention).double()

    here, one, two, both = at(False, False), at(True, False), at(False, True), at(True, True)
    size = float((one - here).abs().max() + (two - here).abs().max())
    return float((one + two - here - both).abs().max()) <= _ROUNDING * size


def section(case: Case) -> Section:
    """Compare the measured penalty with the approximated one, and show the linear model where the two are one."""
    s, (x, _) = case.subject, case.subject.trained
    options: dict[str, Any] = {"per_site": case.per_site, "members": s.members, "seed": s.seed}
    result = case.results["penalty"] = measure(case.prepared, x, case.train_y, case.loss, **options)
    try:
        shares = l2_strength(case.prepared, x, case.train_y, case.loss, seed=s.seed).shares
    except ValueError:  # no Linear follows a site
        shares = {}
    landed = landing(case)
    figures = [result.figure()] if landed is None else [result.figure(), landed[1].figure()]
    how = _how(result, landed, shares)
    return QUESTION.answer(_sentence(result, landed), f"{result.ratio:.2f}", "approximation / truth", how, *figures)


def _sentence(result: Penalty, landed: tuple[Ridge, Descent] | None) -> str:
    sentence = (
        f"Up to a factor: dropout adds {result.measured:.4g} ± {1.96 * result.standard_error:.2g} to the loss, and the "
        f"quadratic (L2-like) form says {result.gauss_newton:.4g}: {result.ratio:.2f} of it."
    )
    if result.is_exact:
        sentence = (
            f"Exactly, here: dropout adds {result.measured:.4g} to the loss, and so says the quadratic form, because "
            "the loss is squared and the outputs are linear in the masks."
        )
    if landed is None:
        return sentence
    _, descent = landed
    return (
        f"{sentence} For a linear model it is L2 to the letter: SGD with dropout lands {descent.to_ridge[-1]:.1%} from "
        f"the ridge solution, {descent.to_plain[-1]:.0%} from least squares."
    )


def _how(result: Penalty, landed: tuple[Ridge, Descent] | None, shares: dict[str, float]) -> str:
    how = (
        f"Loss of {result.rows} rows under {result.members} masks a row less that of one pass ({result.loss:.4g}). The "
        f"quadratic form is Gauss-Newton's, by {result.probes} products with the transposed Jacobian; ratio "
        f"{result.ratio:.3f} ± {result.ratio_error:.2g} (standard error). ± in the sentence is half a 95 % interval. "
    )
    if shares:
        parts = ", ".join(f"{share:.2f} of it at {path}" for path, share in shares.items())
        how += (
            "Squared weights alone, each with its own strength, make up so much of the quadratic form (the rest is in "
            f"products of weights): {parts}. "
        )
    if landed is not None:
        solved, descent = landed
        how += (
            f"Right: a linear model of {len(solved.weights)} of the network's own units before its last site, trained "
            f"for {descent.steps[-1]:,} steps by SGD with real dropout of p={solved.p:g}, against the ridge solution "
            "in closed form, whose strength follows each unit's size."
        )
    return how
