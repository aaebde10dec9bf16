"""Variance shift: BatchNorm learned a variance under dropout that its input does not have at test time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Module

from puredrop._torch import BatchNorm
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import checked_number
from puredrop.members.prepared import PreparedModel, Runner, keep_all, ones_mask, prepare, random_signs
from puredrop.members.sites import SiteUse
from puredrop.report.figures import COLORS, Figure, Trace, axis, dots, line
from puredrop.report.intervals import jackknife_error
from puredrop.report.section import Section
from puredrop.rng import Key

__all__ = ["QUESTION", "Shift", "VarianceShift", "measure", "section", "variance_shift"]


def _has_batchnorm(model: Module) -> bool:
    return any(isinstance(module, BatchNorm) for module in model.modules())


QUESTION = Question("batchnorm", "Does it disturb BatchNorm?", _has_batchnorm)


@dataclass(frozen=True, repr=False)
class Shift(Result):
    """The variance shift of one BatchNorm, one of the `layers` of a `VarianceShift`; tensors are float64 (channels,).

    NaN stands for channels whose input does not vary.

    Args:
        path: of the module.
        measured: variance of its input at test time divided by that in training, with dropout on.
        standard_error: of `measured`, over masks.
        predicted: the same ratio by dropout's noise to first order: exact where only linear layers lie between.
        predicted_error: its standard error over probes.
    """

    path: str
    measured: Tensor
    standard_error: Tensor
    predicted: Tensor
    predicted_error: Tensor

    def __str__(self) -> str:
        return (
            f"{self.path}: test over training variance {_mean(self.measured, self.standard_error)}, predicted "
            f"{_mean(self.predicted, self.predicted_error)} (mean over {int((~self.measured.isnan()).sum())} channels "
            f"that vary; lowest measured {float(self.measured.nan_to_num(math.inf).min()):.3f})"
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the ratios of each channel."""
        names = ("measured", "standard_error", "predicted", "predicted_error")
        return {"channel": list(range(len(self.measured))), **{name: getattr(self, name).tolist() for name in names}}


@dataclass(frozen=True, repr=False)
class VarianceShift(Result):
    """The variance shift of each BatchNorm that dropout reaches: what `puredrop.explain.variance_shift` returns.

    Args:
        layers: in the order of the forward.
        unreached: paths of BatchNorms whose input no dropout changes.
        members: masks of each row.
        rows: number of rows of the data.
        skipped: path of a module or call that drops and was off -> the reason.
    """

    layers: tuple[Shift, ...]
    unreached: tuple[str, ...]
    members: int
    rows: int
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers]
        if not lines:
            where = f"; dropout reaches none of {', '.join(self.unreached)}" if self.unreached else " in this model"
            lines = [f"no variance shift: no BatchNorm after dropout{where}"]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the measured against the predicted ratio, a dot for each channel."""
        traces: list[Trace] = []
        ends = [1.0, 1.0]
        for layer, color in zip(self.layers, COLORS, strict=False):
            varies = ~layer.measured.isnan()
            x, y = layer.predicted[varies].tolist(), layer.measured[varies].tolist()
            ends = [min([ends[0], *x, *y]), max([ends[1], *x, *y])]
            traces.append(dots(x, y, color, "%{x:.3f}: %{y:.3f}", extra=layer.path, name=layer.path))
        traces.append(line(ends, ends, "@line", None, dash="dash", name="equal"))
        axes = {
            "xaxis": axis("predicted test / training variance"), "yaxis": axis("measured test / training variance"),
        }  # fmt: skip
        return Figure(str(self), traces, axes)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the ratios of each channel of each layer."""
        rows = [{"path": layer.path, **row} for layer in self.layers for row in layer.records()]
        names = ("path", "channel", "measured", "standard_error", "predicted", "predicted_error")
        return {name: [row[name] for row in rows] for name in names}


def _mean(values: Tensor, errors: Tensor) -> str:
    # Channels share masks and probes, so averaging over channels does not make the error smaller.
    return f"{float(values.nanmean()):.3f} ± {float(errors.nanmean()):.2g}"


def variance_shift(
    model: Module | PreparedModel, x: Any, *, members: int = 32, probes: int = 32, seed: int = 0, batch_size: int = 1024
) -> VarianceShift:
    """Measure, for each BatchNorm after dropout, how its input's variance at test time differs from that in training.

    Use it when a model with dropout and BatchNorm is worse in eval mode than in training. BatchNorm's running variance
    was taken with dropout on. By the law of total variance that is the variance at test time plus
    ρ Σ_j E (h_j ∂z/∂h_j)², ρ = p/(1-p), to first order in the noise: exact right after dropout, and after linear
    layers. The sum is estimated without any Jacobian, by the derivative along random signs of all units.

    Args:
        model: trained, any module with BatchNorm.
        x: rows, (rows, ...), enough of them to take a variance over: a tensor, an array, a table, a mapping or tuple
            of them, or a DataLoader, of whose batches the model takes what it has arguments for.
        members: masks of each row, 2 at least.
        probes: forward passes for the prediction, 2 at least.
        seed: of masks and probes.
        batch_size: rows at once.

    Returns:
        Measured and predicted, per channel; it prints. A model without BatchNorm has no layers there.

    Raises:
        TypeError, ValueError: for fewer than two rows, or a model of which no dropout is reached.

    Reference: Li et al.: Understanding the disharmony between dropout and batch normalization by variance shift (CVPR
        2019).

    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4))
    >>> found = explain.variance_shift(net, torch.randn(1000, 4), members=64)
    >>> bool(((found.layers[0].measured - found.layers[0].predicted).abs() < 0.05).all())
    True
    """
    checked_number("members", members, 2)
    checked_number("probes", probes, 2)
    prepared = prepare(model, x, seed=seed, batch_size=batch_size)
    if not _has_batchnorm(prepared.root):
        return VarianceShift((), (), members, prepared.rows, prepared.skipped)
    with prepared.instrument() as runner:
        watched = _InputRecorder(runner.model)
        tested = _MomentSums(watched, runner, None)
        trained = [_MomentSums(watched, runner, number) for number in range(members)]
        noises = [_noise(watched, runner, number) for number in range(probes)]
    layers, unreached = [], []
    for path in watched.order:
        test = tested.variance(path)
        noise = torch.stack([variances[path] for variances in noises])
        if not bool((noise > 0).any()):
            unreached.append(path)
            continue
        train, train_error = _over_masks([sums.moments[path] for sums in trained])
        predicted = test + noise.mean(0)
        layers.append(
            Shift(
                path, test / train, test / train.square() * train_error,
                test / predicted, test / predicted.square() * noise.std(0) / math.sqrt(probes),
            )
        )  # fmt: skip
    return VarianceShift(tuple(layers), tuple(unreached), members, prepared.rows, prepared.skipped)


measure = variance_shift


class _InputRecorder:
    """Records the input of each BatchNorm of a model."""

    def __init__(self, model: Module) -> None:
        self.order: list[str] = []
        self.inputs: dict[str, Tensor] = {}
        for path, module in model.named_modules():
            if isinstance(module, BatchNorm):
                module.register_forward_pre_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        def hook(module: Module, inputs: tuple[Tensor, ...]) -> None:
            if path not in self.order:
                self.order.append(path)
            self.inputs[path] = inputs[0]

        return hook


class _MomentSums:
    """Mean and mean square of each channel of each BatchNorm's input over all rows, of one pass or a member's."""

    def __init__(self, watched: _InputRecorder, runner: Runner, member: int | None) -> None:
        totals: dict[str, Tensor] = {}
        first = 0
        for batch in runner.prepared.batches:
            runner.forward(batch, keep_all if member is None else None, member=member or 0, first=first)
            first += batch.rows
            for path, input in watched.inputs.items():
                h = _by_channel(input)
                sums = torch.stack([torch.full_like(h[0], len(h)), h.sum(0), h.square().sum(0)])
                totals[path] = totals.get(path, torch.zeros_like(sums)) + sums
        self.moments = {path: sums[1:] / sums[0] for path, sums in totals.items()}

    def variance(self, path: str) -> Tensor:
        """Return each channel's variance over rows."""
        return _variance(self.moments[path])


def _variance(moments: Tensor) -> Tensor:
    return moments[1] - moments[0].square()


def _by_channel(input: Tensor) -> Tensor:
    return input.detach().transpose(0, 1).flatten(1).T.double().cpu()


def _over_masks(moments: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the variance over rows and masks together, and the jackknife's error over members."""
    stacked = torch.stack(moments)
    number = len(stacked)
    without = torch.stack([_variance((stacked.sum(0) - member) / (number - 1)) for member in stacked])
    return _variance(stacked.mean(0)), jackknife_error(without)


def _noise(watched: _InputRecorder, runner: Runner, number: int) -> dict[str, Tensor]:
    """Estimate ρ Σ_j (h_j ∂z/∂h_j)² once, averaged over rows, for each channel of each BatchNorm's input."""
    generator = torch.Generator().manual_seed(int(Key(runner.prepared.seed).fold_in("signs").fold_in(number)))
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        if not 0 < use.p < 1:
            return input
        ones = ones_mask(use, input, dim)
        noise = math.sqrt(use.p / (1 - use.p)) * random_signs(ones, generator)
        output: Tensor = input * forward_ad.make_dual(ones, noise)
        return output

    for batch in runner.prepared.batches:
        with forward_ad.dual_level():
            runner.forward(batch, intervention)
            for path, input in watched.inputs.items():
                tangent = forward_ad.unpack_dual(input).tangent
                h = _by_channel(torch.zeros_like(input) if tangent is None else tangent)
                totals[path] = totals.get(path, torch.zeros(())) + h.square().sum(0)
                counts[path] = counts.get(path, 0) + len(h)
    return {path: total / counts[path] for path, total in totals.items()}


def section(case: Case) -> Section | None:
    """Say by how much BatchNorm's variance is off in eval mode; None where no dropout reaches a BatchNorm."""
    shift = measure(case.prepared, case.subject.trained[0], seed=case.subject.seed)
    if not shift.layers:
        return None
    worst = min(float(layer.measured.nanmean()) for layer in shift.layers)
    sentence = (
        f"BatchNorm learned a variance under dropout that its input does not have at test time: after dropout it is "
        f"{worst:.2f} of that in training, in the layer where it differs most."
    )
    return QUESTION.answer(sentence, f"{worst:.2f}", "test / training variance", str(shift), shift.figure())
