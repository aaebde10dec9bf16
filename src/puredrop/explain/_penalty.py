"""What dropout adds to the loss: measured, by the Gauss-Newton approximation, and their ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.ensemble._drive import Drive
from puredrop.ensemble._engine import Engine, Members
from puredrop.ensemble._exact import exact, listed
from puredrop.ensemble._inputs import Batch
from puredrop.ensemble._outputs import main_output
from puredrop.ensemble._source import Use
from puredrop.explain._figure import Figure
from puredrop.explain._loss import Loss, check, is_squared, labels, root
from puredrop.explain._probe import Probe, checked_number, factors, prepared, units_of
from puredrop.rng import Key

__all__ = ["Penalty", "SitePenalty", "penalty"]

_ENUMERATED = 12
_ROUNDING = 1e-4
"""By what share a float32 network may miss a linear law that it follows."""


@dataclass(frozen=True)
class SitePenalty:
    """One site's part.

    Args:
        path: of the site.
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
        gauss_newton: ½ρ Σ diag(JᵀHJ) h², the approximation.
        gauss_newton_error: its standard error over probes; 0 where no probes were needed.
        is_exact: whether the approximation is the truth itself: squared loss of outputs that are linear in the masks.
        sites: the parts.
        members: how many masks a row; probes: how many products with the transposed Jacobian.
        rows: of the data.
        left: path of what drops and was off -> why.
    """

    loss: float
    measured: float
    standard_error: float
    gauss_newton: float
    gauss_newton_error: float
    is_exact: bool
    sites: tuple[SitePenalty, ...]
    members: int
    probes: int
    rows: int
    left: dict[str, str] = field(default_factory=dict)

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
        of = "all masks" if not self.standard_error else f"{self.members} masks a row"
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
        lines += [f"  not part of it: {path}: {why}" for path, why in self.left.items()]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Measured beside approximated, of all sites together and, where that was asked for, of each alone."""
        each = [site for site in self.sites if site.measured is not None]
        names = ["all sites", *(f"{site.path} alone" for site in each)]
        truth = [self.measured, *(float(site.measured or 0) for site in each)]
        errors = [1.96 * self.standard_error, *(1.96 * float(site.standard_error or 0) for site in each)]
        guess = [self.gauss_newton, *(site.gauss_newton for site in each)]
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
    each: bool = False,
    seed: int = 0,
    sample_dim: int = 0,
    batch_size: int = 1024,
) -> Penalty:
    """Measure what dropout adds to the loss, and what the Gauss-Newton approximation says it adds.

    The truth is the mean loss under masks less the loss of one pass with every unit active; the model is in eval mode
    but for dropout. By the approximation dropout is a penalty ½ρ Σ_j (JᵀHJ)_jj h_j² over its units, ρ = p/(1-p), J the
    Jacobian of the outputs in the units' factors, H the curvature of the loss. No Jacobian is formed: with a noise ε of
    ±1 and H = SSᵀ, ½ρ Σ(h∘JᵀSε)² has that mean. Costs a forward and `probes` backward passes to the first site, and
    `members` forward passes from there on; with `each`, the latter once more for each site. Memory is that of the
    activations of `batch_size` rows.

    Args:
        model: trained, any module.
        x: rows, as `DropoutEnsemble.predict` takes them; two at least.
        y: what belongs to them, (rows, ...).
        loss: (outputs, y) -> mean over rows, such as `torch.nn.functional.cross_entropy`.
        members: masks of each row, for the truth; up to 12 units all are run.
        probes: for the approximation.
        each: measure each site alone, too.
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
    probe = prepared(model, x, seed=seed, sample_dim=sample_dim, batch_size=batch_size)
    targets = labels(y, probe.rows, probe.batches[0].tensors[0].device)
    with probe.opened() as drive:
        parts = tuple(zip(probe.batches, targets.split([batch.rows for batch in probe.batches]), strict=True))
        base = _base(probe, drive, parts, loss)
        truth, error, count = _measured(probe, drive, parts, loss, members)
        is_exact = is_squared(loss) and _is_linear(probe, drive)
        estimates, units = _gauss_newton(probe, drive, parts, loss, probes, is_exact)
        sites = tuple(SitePenalty(use.path, use.p, units[i]) for i, use in enumerate(probe.uses))
        if each:
            sites = tuple(
                replace(site, measured=value - base, standard_error=spread)
                for site in sites
                for value, spread in [_sampled(probe, drive, parts, loss, members, only=site.path)]
            )
    spread = 0.0 if is_exact else float(estimates.std()) / math.sqrt(probes)
    return Penalty(
        base,
        truth - base,
        error,
        float(estimates.mean()),
        spread,
        is_exact,
        sites,
        count,
        probes,
        probe.rows,
        probe.left,
    )


_Parts = tuple[tuple[Batch, Tensor], ...]


def _base(probe: Probe, drive: Drive, parts: _Parts, loss: Loss) -> float:
    """The loss of one pass, every unit active."""
    total = 0.0
    for batch, y in parts:
        outputs = probe.forward(drive, batch, lambda use, input, dim: input)
        check(loss, outputs, y)
        total += batch.rows * float(loss(outputs, y))
    return total / probe.rows


def _measured(probe: Probe, drive: Drive, parts: _Parts, loss: Loss, members: int) -> tuple[float, float, int]:
    """The mean loss under masks, its standard error, and the number of masks."""
    units = sum(use.units for use in probe.uses)
    if units > _ENUMERATED or not all(use.is_per_row for use in probe.uses):
        return *_sampled(probe, drive, parts, loss, members), members
    total, listing = 0.0, listed(probe.uses)
    for batch, y in parts:
        # Each row's mean is over the same masks, whether rows share them or not.
        shared = Members(probe.seed, is_shared=True, given=listing)
        engine = Engine(drive, shared, _of(loss, y), [], is_batched=not probe.found.slow)
        total += batch.rows * float(exact(engine, batch, probe.uses, 256))
    return total / probe.rows, 0.0, 2**units


def _of(loss: Loss, y: Tensor) -> Callable[[Any], Tensor]:
    return lambda output: loss(main_output(output), y)


def _sampled(
    probe: Probe, drive: Drive, parts: _Parts, loss: Loss, members: int, only: str | None = None
) -> tuple[float, float]:
    totals, first = torch.zeros(members, dtype=torch.float64), 0

    def act(use: Use, input: Tensor, dim: int | None) -> Tensor | None:
        return None if use.path == only else input

    for batch, y in parts:
        blocks = probe.members(
            drive, batch, range(members), _of(loss, y),
            first=first, act=None if only is None else act,
        )  # fmt: skip
        totals += batch.rows * torch.cat(list(blocks)).double().cpu()
        first += batch.rows
    losses = totals / probe.rows
    return float(losses.mean()), float(losses.std()) / math.sqrt(members)


class _Leaves:
    """A factor for each decision, with gradients."""

    def __init__(self) -> None:
        self.found: list[tuple[Tensor, int | None, Use]] = []

    def __call__(self, use: Use, input: Tensor, dim: int | None) -> Tensor:
        leaf = factors(use, input, dim)
        if 0 < use.p < 1:
            self.found.append((leaf.requires_grad_(), dim, use))
        return input * leaf


def _gauss_newton(
    probe: Probe, drive: Drive, parts: _Parts, loss: Loss, probes: int, is_exact: bool
) -> tuple[Tensor, list[Tensor]]:
    """Each probe's value, float64, and the mean of each unit's part by use."""
    generator = torch.Generator().manual_seed(int(Key(probe.seed).fold_in("probes")))
    estimates: Tensor | None = None
    units: list[Tensor] = []
    for batch, y in parts:
        leaves, share = _Leaves(), batch.rows / probe.rows
        with torch.enable_grad():
            outputs = probe.forward(drive, batch, leaves)
        multiply = root(loss, outputs, y)
        noises = _basis(outputs) if is_exact else (_signs(outputs, generator) for _ in range(probes))
        values, sums = [], [torch.zeros(use.units, dtype=torch.float64) for *_, use in leaves.found]
        for noise in noises:
            slopes = torch.autograd.grad(
                outputs, [leaf for leaf, *_ in leaves.found], multiply(noise), retain_graph=True
            )
            value = 0.0
            for i, (slope, (_, dim, use)) in enumerate(zip(slopes, leaves.found, strict=True)):
                part = (
                    share * 0.5 * use.p / (1 - use.p) * units_of(slope, batch.rows, dim).square().sum(0).double().cpu()
                )
                sums[i] += part
                value += float(part.sum())
            values.append(value)
        scale = 1 if is_exact else 1 / len(values)
        found = torch.tensor(values, dtype=torch.float64)
        found = found.sum().expand(1) if is_exact else found
        estimates = found if estimates is None else estimates + found
        units = [a + scale * b for a, b in zip(units, sums, strict=True)] if units else [scale * one for one in sums]
    assert estimates is not None
    return estimates, units


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like.device, like.dtype)


def _basis(outputs: Tensor) -> list[Tensor]:
    """One noise for each output of a row: with all of them the sum has no error."""
    size = outputs[0].numel()
    rows = torch.eye(size, dtype=outputs.dtype, device=outputs.device).view(size, *outputs.shape[1:])
    return [one.expand_as(outputs) for one in rows]


def _is_linear(probe: Probe, drive: Drive) -> bool:
    """Whether outputs are affine in all factors together, tried on a few rows at two random points."""
    batch = probe.batches[0].chosen(torch.arange(min(8, probe.batches[0].rows)))
    generator = torch.Generator().manual_seed(int(Key(probe.seed).fold_in("linear")))
    drawn: list[list[Tensor]] = []

    def at(choose: Any) -> Tensor:
        calls: list[int] = []

        def act(use: Use, input: Tensor, dim: int | None) -> Tensor:
            ones = factors(use, input, dim)
            calls.append(1)
            if len(drawn) < len(calls):
                drawn.append([torch.rand(ones.shape, generator=generator).to(ones) * 2 for _ in range(2)])
            factor: Tensor = choose(ones, *drawn[len(calls) - 1])
            return input * factor

        return probe.forward(drive, batch, act).double()

    here, a = at(lambda ones, a, b: ones), at(lambda ones, a, b: a)
    b, both = at(lambda ones, a, b: b), at(lambda ones, a, b: a + b - ones)
    size = float((a - here).abs().max() + (b - here).abs().max())
    return float((a + b - here - both).abs().max()) <= _ROUNDING * size
