"""Dropout as noise on the gradient: how much masks add to what a mini-batch's choice of rows makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._inputs import prepare_with_targets, targets_and_loss
from puredrop.explanation._loss import Loss, check
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import Batch, checked_number
from puredrop.members.prepared import PreparedModel, Runner, keep_all, ones_mask, random_signs
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure, axis, bars, error_bars
from puredrop.report.section import Section
from puredrop.rng import Key

__all__ = ["QUESTION", "GradientNoise", "gradient_noise", "measure", "section"]

QUESTION = Question("noise", "Is it also noise?")
_LARGEST_BATCH = 128


@dataclass(frozen=True, repr=False)
class GradientNoise(Result):
    """Variances of a mini-batch's gradient: what `puredrop.explain.gradient_noise` returns.

    Variances are summed over all parameters, in the unit of the loss squared over that of the parameters squared.

    Args:
        masks: variance over masks, where each row has a mask of its own.
        rows: variance over the choice of the mini-batch's rows, of the mean over masks.
        shared: variance over masks, where all rows of the batch share a mask.
        predicted: `masks` by first order in the noise: ρ Σ_j ‖∂/∂θ (h_j ∂ℓ/∂h_j)‖², ρ = p/(1-p).
        masks_error, rows_error, shared_error, predicted_error: standard errors over batches.
        size: squared length of the mean gradient.
        batch: rows of a mini-batch.
        draws: masks drawn for each mini-batch.
        skipped: path of a module or call that drops and was off -> the reason.
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
        """Return the variance over masks where each row's gradient is the mean over k masks: 1/k of `masks`."""
        return self.masks / checked_number("k", k)

    def grouped(self, groups: int) -> float:
        """Return the variance over masks where each of G groups of the batch shares a mask: (V - C)/B + C/G.

        V is the variance of a single row, V/B = `masks`, B the batch; C is the part that rows have in common, so that
        one group has `shared`.

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
        """Draw the variances from rows and from masks, and what averaging and sharing masks do."""
        few = [g for g in (16, 4, 1) if g <= self.batch]
        names = ["choice of rows", "masks", "4 masks a row", *(f"{g} group{'s' * (g > 1)}" for g in few)]
        values = [self.rows, self.masks, self.averaged(4), *(self.grouped(g) for g in few)]
        known = (self.rows_error, self.masks_error, self.masks_error / 4)
        # Only one group and a mask for each row were measured; the error of groups between them is not known.
        errors = error_bars([*known, *[None] * (len(few) - 1), self.shared_error])
        colors = ["@none"] + ["@dropout"] * 2 + ["@batchwise"] * len(few)
        traces = [bars(names, values, colors, "%{x}: %{y:.3g}", error_y=errors)]
        axes = {
            "xaxis": axis(f"source of noise, batches of {self.batch}"),
            "yaxis": axis("variance of the gradient", rangemode="tozero"),
        }
        return Figure(str(self), traces, {**axes, "showlegend": False})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the variance by its source."""
        return {
            "source": ["masks", "rows", "shared", "predicted"],
            "variance": [self.masks, self.rows, self.shared, self.predicted],
            "standard_error": [self.masks_error, self.rows_error, self.shared_error, self.predicted_error],
        }


def gradient_noise(
    model: Module | PreparedModel,
    x: Any,
    y: Any = None,
    loss: Loss | str | None = None,
    *,
    batch: int | None = None,
    batches: int = 16,
    draws: int = 8,
    probes: int = 4,
    class_dim: int | None = None,
    seed: int = 0,
) -> GradientNoise:
    """Measure how much noise dropout's masks add to a mini-batch's gradient, compared with the choice of its rows.

    Use it to see whether dropout slows training by noise, and whether averaging masks or larger batches would help. Two
    draws of masks for the same rows tell the two sources apart. Costs 2 x `batches` x `draws` forward and backward
    passes of `batch` rows, and for each of `batches` x `probes` a forward and two backward passes.

    Args:
        model: any module, at any point of its training.
        x: rows to draw mini-batches from, (rows, ...): a tensor, an array, a table, or a mapping or tuple of them;
            with y left out, a batch (x, y) or a DataLoader of such batches.
        y: targets of the rows, (rows, ...).
        loss: "cross_entropy", "mse_loss", or a function (outputs, y) -> mean over rows; by default "mse_loss" for
            floating-point y, else "cross_entropy".
        batch: rows of a mini-batch, at most as many as there are; by default 128, or half of the rows if they are
            fewer than 256.
        batches: number of mini-batches, 3 at least; rows repeat only where there are too few.
        draws: masks drawn for each mini-batch, 2 at least.
        probes: random signs for the prediction, for each mini-batch.
        class_dim: dimension of the classes in the outputs, which `loss` gets in dimension 1: -1 for (rows, time,
            classes). By default found from y for cross entropy, else outputs stay as they are.
        seed: of rows and masks.

    Returns:
        Variances with standard errors; it prints, `averaged` and `grouped` give what changes them.

    Raises:
        TypeError, ValueError: for a loss that is no mean over rows, fewer than two rows, a batch larger than the data,
            or a model of which no dropout is reached.

    Reference: Wei, Kakade and Ma: The implicit and explicit regularization effects of dropout (ICML 2020); Graham et
        al.: Efficient batchwise dropout training (2015).

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 4), torch.randint(3, (200,))
    >>> found = explain.gradient_noise(net, x, y, torch.nn.functional.cross_entropy, batch=32)
    >>> found.masks > 0, found.averaged(2) == found.masks / 2, found.grouped(32) < found.grouped(1)
    (True, True, True)
    """
    for name, value, least in (("batches", batches, 3), ("draws", draws, 2), ("probes", probes, 1)):
        checked_number(name, value, least)
    x, y, loss = targets_and_loss(x, y, loss)
    prepared, pairs = prepare_with_targets(model, x, y, class_dim, loss, seed=seed, batch_size=2**31)
    if len(pairs) > 1:
        raise ValueError(
            "x comes in batches of its own; expected all rows, from which batches are drawn, or a DataLoader of (x, y) "
            "with y left out"
        )
    ((data, targets),) = pairs
    batch = min(_LARGEST_BATCH, max(2, prepared.rows // 2)) if batch is None else checked_number("batch", batch, 2)
    if batch > prepared.rows:
        raise ValueError(f"batch is {batch}, but x has {prepared.rows} rows; expected at most as many")
    weights = [weight for weight in prepared.root.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("model has no parameter that requires a gradient")
    key = Key(seed).fold_in("gradient")
    with prepared.instrument() as runner, torch.enable_grad():
        first = data.select(torch.arange(batch))
        check(loss, runner.forward(first, keep_all).detach(), targets[:batch], targets)
        gradients = _Gradients(runner, loss, weights)
        drawn = []
        for number, rows in enumerate(_rows(key, prepared.rows, batch, batches)):
            few, y_few = data.select(rows), targets[rows.to(targets.device)]
            members = range(number * draws, (number + 1) * draws)
            separate = [gradients.drawn(few, y_few, member, is_shared=False) for member in members]
            shared = [gradients.drawn(few, y_few, member, is_shared=True) for member in members]
            signs = key.fold_in("probe").fold_in(number)
            squares = [gradients.first_order(few, y_few, signs.fold_in(probe)) for probe in range(probes)]
            drawn.append((torch.stack(separate), torch.stack(shared).var(0).sum(), torch.tensor(squares).mean()))
    return _summary(drawn, batch, draws, prepared.skipped)


measure = gradient_noise


def _rows(key: Key, count: int, batch: int, batches: int) -> Sequence[Tensor]:
    """Return the rows of each mini-batch, taken from one random order of all rows after the other."""
    chosen: list[Tensor] = []
    order = 0
    while len(chosen) < batches:
        generator = torch.Generator().manual_seed(int(key.fold_in("rows").fold_in(order)))
        parts = torch.randperm(count, generator=generator).split(batch)
        chosen += [part for part in parts if len(part) == batch]
        order += 1
    return chosen[:batches]


class _Gradients:
    """Computes the gradient of a loss in all weights as one vector, under masks or to first order in their noise."""

    def __init__(self, runner: Runner, loss: Loss, weights: Sequence[Tensor]) -> None:
        self._runner, self._loss, self._weights = runner, loss, weights

    def _flat(self, value: Tensor) -> Tensor:
        parts = torch.autograd.grad(value, self._weights, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(parts, self._weights, strict=True)]
        )

    def drawn(self, batch: Batch, y: Tensor, member: int, *, is_shared: bool) -> Tensor:
        """Return the gradient under a member's masks, a mask for each row or one for all; float64."""
        outputs = self._runner.forward(batch, member=member, is_shared=is_shared)
        return self._flat(self._loss(outputs, y)).double().cpu()

    def first_order(self, batch: Batch, y: Tensor, key: Key) -> float:
        """Estimate ρ Σ_j ‖∂/∂θ (h_j ∂ℓ/∂h_j)‖² by random signs: the loss's slope along them, differentiated."""
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

        value = self._loss(self._runner.forward(batch, intervention), y)
        slopes = torch.autograd.grad(value, leaves, create_graph=True)
        along = torch.stack([(a * b).sum() for a, b in zip(slopes, noises, strict=True)]).sum()
        return float(self._flat(along).double().square().sum())


def _summary(
    drawn: list[tuple[Tensor, Tensor, Tensor]], batch: int, draws: int, skipped: dict[str, str]
) -> GradientNoise:
    number = len(drawn)
    masks = torch.stack([separate.var(0).sum() for separate, *_ in drawn])
    means = torch.stack([separate.mean(0) for separate, *_ in drawn])
    away = (means - means.mean(0)).square().sum(1) * number / (number - 1)  # its mean is the variance of the means
    rows = away - masks / draws
    shared = torch.stack([variance for _, variance, _ in drawn])
    predicted = torch.stack([variance for *_, variance in drawn]).double()
    size = means.mean(0).square().sum() - away.mean() / number

    def error(of: Tensor) -> float:
        return float(of.std()) / math.sqrt(number)

    return GradientNoise(
        float(masks.mean()), float(rows.mean()), float(shared.mean()), float(predicted.mean()),
        error(masks), error(rows), error(shared), error(predicted), float(size), batch, draws, skipped,
    )  # fmt: skip


def section(case: Case) -> Section:
    """Compare the gradient's variance from masks with that from the choice of rows."""
    x, _ = case.subject.trained
    batch = min(_LARGEST_BATCH, len(case.train_y) // 2)
    noise = measure(case.prepared, x, case.train_y, case.loss, batch=batch, seed=case.subject.seed)
    case.results["gradient_noise"] = noise
    ratio = noise.masks / noise.rows if noise.rows > 0 else float("nan")
    sentence = (
        f"Masks give the gradient of a batch of {noise.batch} rows {ratio:.2f} times the variance that the choice of "
        "its rows gives it."
    )
    how = (
        f"Variances summed over all parameters, from two sets of masks for the same rows: masks {noise.masks:.3g} ± "
        f"{noise.masks_error:.2g}, rows {noise.rows:.3g} ± {noise.rows_error:.2g} (standard errors over batches); "
        f"first order in the noise says {noise.predicted:.3g}. Averaging k masks of a row divides the first by k; "
        f"sharing one among all rows makes it {noise.grouped(1):.3g}."
    )
    return QUESTION.answer(sentence, f"{ratio:.2f}", "variance from masks / from rows", how, noise.figure())
