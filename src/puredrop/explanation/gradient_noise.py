"""Dropout as noise on the gradient: how much masks add to what a mini-batch's choice of rows makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._loss import Loss, check
from puredrop.members.inputs import Batch, checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.prepared import PreparedModel, keep_all, ones_mask, prepare, random_signs
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure
from puredrop.rng import Key

__all__ = ["GradientNoise", "gradient_noise"]


@dataclass(frozen=True)
class GradientNoise:
    """Variances of the gradient, summed over all parameters, in the unit of the loss squared over parameters squared.

    Args:
        masks: of a mini-batch's gradient over masks, a mask for each row.
        rows: over which rows are in the mini-batch, at the mean over masks.
        shared: over masks that all rows of the batch share.
        predicted: of `masks`, by first order in the noise: ρ Σ_j ‖∂/∂θ (h_j ∂ℓ/∂h_j)‖².
        masks_error, rows_error, shared_error, predicted_error: standard errors, over batches.
        size: squared length of the mean gradient.
        batch: rows of a mini-batch.
        draws: masks of each mini-batch.
        skipped: path of what drops and was off -> why.
    """

    masks: float
    rows: float
    shared: float
    predicted: float
    masks_error: float
    rows_error: float
    shared_error: float
    predicted_error: float
    size: float
    batch: int
    draws: int
    skipped: dict[str, str] = field(default_factory=dict)

    def averaged(self, k: int) -> float:
        """Variance over masks of the mean over k masks of each row: 1/k of it."""
        return self.masks / checked_number("k", k)

    def grouped(self, groups: int) -> float:
        """Variance over masks where each of so many groups of the batch shares one: (V - C)/B + C/G.

        V is a single row's, V/B = `masks`; C the part that rows have in common, so that one group has `shared`.

        Reference: Graham, Reizenstein and Robinson: Efficient batchwise dropout training (2015).
        """
        if not 1 <= checked_number("groups", groups) <= self.batch:
            raise ValueError(f"groups is {groups}; expected 1 to {self.batch}, the rows of a batch")
        size = self.batch
        common = (self.shared - self.masks) / (1 - 1 / size) if size > 1 else 0.0
        return self.masks - common / size + common / groups

    def __str__(self) -> str:
        groups = [g for g in (1, 4, 16) if g <= self.batch]
        shared = ", ".join(f"{self.grouped(g):.3g} with {g}" for g in groups)
        return (
            f"variance of the gradient of {self.batch} rows: masks {self.masks:.3g} ± {self.masks_error:.2g} (first "
            f"order says {self.predicted:.3g} ± {self.predicted_error:.2g}), choice of rows {self.rows:.3g} ± "
            f"{self.rows_error:.2g}; squared length of the gradient {self.size:.3g}\n"
            f"averaging k masks a row divides the first by k; masks shared by groups of the batch make it {shared}"
        )

    def figure(self) -> Figure:
        """Masks and rows beside each other, and what averaging and sharing do."""
        few = [g for g in (16, 4, 1) if g <= self.batch]
        names = ["choice of rows", "masks", "4 masks a row", *(f"{g} group{'s' * (g > 1)}" for g in few)]
        values = [self.rows, self.masks, self.averaged(4), *(self.grouped(g) for g in few)]
        known = (self.rows_error, self.masks_error, self.masks_error / 4)
        # Of groups between the two that were measured the error is not known.
        errors = [*(1.96 * one for one in known), *[None] * (len(few) - 1), 1.96 * self.shared_error]
        traces: list[dict[str, Any]] = [
            {"type": "bar", "x": names, "y": values, "error_y": {"array": errors, "thickness": 1.5},
             "marker": {"color": ["@none"] + ["@dropout"] * 2 + ["@batchwise"] * len(few)},
             "hovertemplate": "%{x}: %{y:.3g}<extra></extra>"}
        ]  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": f"source of noise, batches of {self.batch}"}},
            "yaxis": {"title": {"text": "variance of the gradient"}, "rangemode": "tozero"},
        }
        return Figure(str(self), traces, {**axes, "showlegend": False})


def gradient_noise(
    model: Module,
    x: Any,
    y: Any,
    loss: Loss,
    *,
    batch: int = 128,
    batches: int = 16,
    draws: int = 8,
    probes: int = 4,
    seed: int = 0,
) -> GradientNoise:
    """Measure how much noise dropout's masks add to a mini-batch's gradient, beside the choice of its rows.

    Two draws of masks for the same rows tell one from the other. Costs 2 x `batches` x `draws` forward and backward
    passes of `batch` rows, and for each of `batches` x `probes` a forward and two backward passes.

    Args:
        model: any module, at any point of its training.
        x, y: rows to draw mini-batches from, not as a DataLoader, and what belongs to them.
        loss: (outputs, y) -> mean over rows.
        batch: rows of a mini-batch, at most as many as there are.
        batches: how many are drawn, with other rows as often as there are enough.
        draws: masks of each.
        probes: for the prediction, of each.
        seed: of rows and masks.

    Returns:
        Variances with standard errors; it prints, `averaged` and `grouped` say what changes them.

    Raises:
        TypeError, ValueError: as `penalty`; for a batch larger than the data.

    Reference: Wei, Kakade and Ma: The implicit and explicit regularization effects of dropout (ICML 2020); Graham et
        al.: Efficient batchwise dropout training (2015).

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 4), torch.randint(3, (200,))
    >>> found = gradient_noise(net, x, y, torch.nn.functional.cross_entropy, batch=32)
    >>> found.masks > 0, found.averaged(2) == found.masks / 2, found.grouped(32) < found.grouped(1)
    (True, True, True)
    """
    for name, value, least in (
        ("batches", batches, 3),
        ("draws", draws, 2),
        ("probes", probes, 1),
        ("batch", batch, 2),
    ):
        checked_number(name, value, least)
    prepared = prepare(model, x, seed=seed, batch_size=2**31)
    if len(prepared.batches) > 1:
        raise ValueError(
            "x comes in batches of its own (a DataLoader?); expected all rows, from which batches are drawn"
        )
    ((data, targets),) = prepared.with_targets(y)
    if batch > prepared.rows:
        raise ValueError(f"batch is {batch}, but x has {prepared.rows} rows; expected at most as many")
    weights = [one for one in prepared.root.parameters() if one.requires_grad]
    if not weights:
        raise ValueError("model has no parameter that requires a gradient")
    key = Key(seed).fold_in("gradient")
    with prepared.instrument() as instrumented, torch.enable_grad():
        few = data.chosen(torch.arange(batch))
        check(loss, prepared.forward(instrumented, few, keep_all).detach(), targets[:batch], targets)
        gradients = _Gradients(prepared, instrumented, loss, weights)
        found = []
        for number, rows in enumerate(_rows(key, prepared.rows, batch, batches)):
            few, some = data.chosen(rows), targets[rows.to(targets.device)]
            members = range(number * draws, (number + 1) * draws)
            free = [gradients.drawn(few, some, member, is_shared=False) for member in members]
            one = [gradients.drawn(few, some, member, is_shared=True) for member in members]
            own = key.fold_in("probe").fold_in(number)
            squares = [gradients.first_order(few, some, own.fold_in(probe_number)) for probe_number in range(probes)]
            found.append((torch.stack(free), torch.stack(one).var(0).sum(), torch.tensor(squares).mean()))
    return _summary(found, batch, draws, prepared.skipped)


def _rows(key: Key, count: int, batch: int, batches: int) -> Sequence[Tensor]:
    """Of each mini-batch, from one order after the other of all rows."""
    found: list[Tensor] = []
    order = 0
    while len(found) < batches:
        generator = torch.Generator().manual_seed(int(key.fold_in("rows").fold_in(order)))
        parts = torch.randperm(count, generator=generator).split(batch)
        found += [part for part in parts if len(part) == batch]
        order += 1
    return found[:batches]


class _Gradients:
    """Gradients of a loss in all weights, as one vector, dropout as it is told."""

    def __init__(
        self, prepared: PreparedModel, instrumented: InstrumentedModel, loss: Loss, weights: Sequence[Tensor]
    ) -> None:
        self._probe, self._drive, self._loss, self._weights = prepared, instrumented, loss, weights

    def _flat(self, value: Tensor) -> Tensor:
        parts = torch.autograd.grad(value, self._weights, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(parts, self._weights, strict=True)]
        )

    def drawn(self, batch: Batch, y: Tensor, member: int, *, is_shared: bool) -> Tensor:
        """Under a member's masks, one of each row or one of all together; float64."""
        outputs = self._probe.forward(self._drive, batch, member=member, is_shared=is_shared)
        return self._flat(self._loss(outputs, y)).double().cpu()

    def first_order(self, batch: Batch, y: Tensor, key: Key) -> float:
        """One estimate of ρ Σ_j ‖∂/∂θ (h_j ∂ℓ/∂h_j)‖², by signs: the slope of the loss along them, differentiated."""
        generator = torch.Generator().manual_seed(int(key))
        leaves: list[Tensor] = []
        noises: list[Tensor] = []

        def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            if not 0 < use.p < 1:
                return input
            ones = ones_mask(use, input, dim).requires_grad_()
            leaves.append(ones)
            noises.append(math.sqrt(use.p / (1 - use.p)) * random_signs(ones, generator))
            return input * ones

        value = self._loss(self._probe.forward(self._drive, batch, intervention), y)
        slopes = torch.autograd.grad(value, leaves, create_graph=True)
        along = torch.stack([(a * b).sum() for a, b in zip(slopes, noises, strict=True)]).sum()
        return float(self._flat(along).double().square().sum())


def _summary(
    found: list[tuple[Tensor, Tensor, Tensor]], batch: int, draws: int, skipped: dict[str, str]
) -> GradientNoise:
    number = len(found)
    masks = torch.stack([free.var(0).sum() for free, *_ in found])
    means = torch.stack([free.mean(0) for free, *_ in found])
    away = (means - means.mean(0)).square().sum(1) * number / (number - 1)  # its mean is the variance of the means
    rows = away - masks / draws
    shared = torch.stack([one for _, one, _ in found])
    predicted = torch.stack([one for *_, one in found]).double()
    size = means.mean(0).square().sum() - away.mean() / number

    def error(of: Tensor) -> float:
        return float(of.std()) / math.sqrt(number)

    return GradientNoise(
        float(masks.mean()), float(rows.mean()), float(shared.mean()), float(predicted.mean()),
        error(masks), error(rows), error(shared), error(predicted), float(size), batch, draws, skipped,
    )  # fmt: skip
