"""Do units rely on each other: predictions with units removed or perturbed, and the interaction among masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._ablation import (
    Perturbation,
    Recorder,
    Units,
    add_noise,
    interaction_share,
    remove_largest,
    remove_ranked,
)
from puredrop.explanation._inputs import check_task, prepare_with_targets
from puredrop.explanation._loss import Loss, check_classes
from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import checked_number
from puredrop.members.outputs import reader
from puredrop.members.prepared import PreparedModel
from puredrop.report.figures import Figure, Trace, axis, error_bars, line
from puredrop.report.intervals import Difference, paired_difference
from puredrop.report.section import Section, signed
from puredrop.rng import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QUESTION", "Coadaptation", "Curve", "coadaptation", "measure", "section"]

QUESTION = Question("reliance", "Do units stop relying on each other?")
Task = Literal["classification", "regression"]
_NAMES = {
    "random": "units removed at random",
    "largest": "largest activations removed (not trained on)",
    "noise": "Gaussian noise added (not trained on)",
}
_LOSSES: dict[str, Loss] = {"classification": F.cross_entropy, "regression": F.mse_loss}
_AXES = {"random": "units removed (%)", "largest": "activations removed (%)", "noise": "noise / activations' size"}


@dataclass(frozen=True, repr=False)
class Curve(Result):
    """Scores of predictions under a perturbation of growing size: one of the curves of a `Coadaptation`.

    Args:
        kind: "random" (ablation of random units), "largest" (of the largest activations) or "noise".
        sizes: sizes of the perturbation: shares of units, or multiples of the activations' root mean square.
        score: score at each size: the share of rows predicted right, or, for a regression, the mean squared error.
        standard_error: standard error of each score over orders and rows.
        tables: float64 (sizes, orders, rows), score by row; for "largest", where nothing is drawn, two equal orders.
    """

    kind: str
    sizes: tuple[float, ...]
    score: tuple[float, ...]
    standard_error: tuple[float, ...]
    tables: NDArray[np.float64]
    _raw: ClassVar = ("tables",)

    def minus(self, baseline: Curve) -> tuple[Difference, ...]:
        """Return the difference of the scores at each size, paired by order and row, with 95 % intervals.

        Raises:
            ValueError: for a curve of another perturbation, or other orders or rows.
        """
        if self.tables.shape != baseline.tables.shape or (self.kind, self.sizes) != (baseline.kind, baseline.sizes):
            raise ValueError("baseline has other sizes, orders or rows; expected a curve measured in the same way")
        return tuple(paired_difference(a - b) for a, b in zip(self.tables, baseline.tables, strict=True))

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: score and standard error by size."""
        return {"size": list(self.sizes), "score": list(self.score), "standard_error": list(self.standard_error)}

    def __str__(self) -> str:
        points = zip(self.sizes, self.score, self.standard_error, strict=True)
        return ", ".join(f"{score:.4g} ± {error:.2g} at {size:g}" for size, score, error in points)


@dataclass(frozen=True, repr=False)
class Coadaptation(Result):
    """The reliance of units on each other, as `puredrop.explain.coadaptation` measures it.

    Args:
        curves: kind -> scores under that perturbation. A net that was trained with units removed is robust to "random"
            by construction; "largest" and "noise" it was not trained on.
        interaction: 1 - S1, the share of the masks' variance in probabilities (a regression's outputs) that is no sum
            over units, at `probe_rate`.
        interaction_error: its standard error over masks.
        probe_rate: the rate at which the interaction is measured, whatever the model was trained with.
        sparsity: share of activations that are 0.
        correlation: mean |correlation| between units over rows: shown because people ask for it. It says little: .33
            with dropout and .35 without on the digits, where the other figures differ by half (docs/theory.md).
        task: "classification" or "regression".
        rows: number of rows of the data.
    """

    curves: dict[str, Curve]
    interaction: float
    interaction_error: float
    probe_rate: float
    sparsity: float
    correlation: float
    task: Task
    rows: int

    def __str__(self) -> str:
        what = "right" if self.task == "classification" else "mean squared error"
        lines = []
        for kind, curve in self.curves.items():
            scores = zip(curve.sizes, curve.score, curve.standard_error, strict=True)
            shown = ", ".join(
                f"{self._shown(score)} ± {self._shown(error)} at {size:g}" for size, score, error in scores
            )
            lines.append(f"{_NAMES[kind]}: {what} {shown}")
        lines.append(
            f"interaction share of the masks' variance at p={self.probe_rate:g}: {self.interaction:.2f} ± "
            f"{self.interaction_error:.2f}; activations that are 0: {self.sparsity:.2f}; mean |correlation| "
            f"{self.correlation:.2f} (which hardly differs between nets with and without dropout)"
        )
        return "\n".join(lines)

    def _shown(self, score: float) -> str:
        return f"{score:.1%}" if self.task == "classification" else f"{score:.4g}"

    def figure(
        self, kind: str = "random", against: Coadaptation | None = None, name: str = "", against_name: str = ""
    ) -> Figure:
        """Draw one curve with 95 % intervals, and that of another model.

        Args:
            kind: "random", "largest" or "noise".
            against: the result of another model, measured in the same way.
            name, against_name: labels of the two curves.
        """
        traces: list[Trace] = []
        is_class, words = self.task == "classification", []
        factor = 100 if is_class else 1
        for result, label, color in (
            (self, name or "this model", "@dropout"),
            (against, against_name or "other", "@none"),
        ):
            if result is None:
                continue
            curve = result.curves[kind]
            x = [size if kind == "noise" else 100 * size for size in curve.sizes]
            y = [factor * score for score in curve.score]
            errors = error_bars(curve.standard_error, scale=factor, width=4)
            traces.append(
                line(x, y, color, "%{x:g}: %{y:.4g}", extra=label, mode="lines+markers", name=label, error_y=errors)
            )
            words.append(f"{label} " + ", ".join(f"{b:.4g} at {a:g}" for a, b in zip(x, y, strict=True)))
        title = "rows that are right (%)" if is_class else "mean squared error"
        layout = {"xaxis": axis(_AXES[kind]), "yaxis": axis(title)}
        return Figure(f"{_NAMES[kind]}: {'; '.join(words)}", traces, layout)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the points of all curves."""
        rows = [{"kind": kind, **row} for kind, curve in self.curves.items() for row in curve.records()]
        return {name: [row[name] for row in rows] for name in ("kind", "size", "score", "standard_error")}


def coadaptation(
    model: Module | PreparedModel,
    x: Any,
    y: Any = None,
    *,
    task: Task = "classification",
    at: Sequence[str] | None = None,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9),
    top_fractions: Sequence[float] = (0.0, 0.02, 0.05, 0.1, 0.2),
    noises: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    orders: int = 16,
    probe_rate: float = 0.5,
    members: int = 256,
    class_dim: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> Coadaptation:
    """Measure how much the units of a model rely on each other.

    Use it to check "dropout prevents co-adaptation": call it for the model and for the same model trained without
    dropout, and compare their curves (`Curve.minus`). Units are removed (the others scaled, so that sums keep their
    size) at every place at once, in random orders: the same orders for every model with these places and sizes, so
    that models can be compared pair by pair. Then each row's largest activations are removed, and Gaussian noise is
    added: perturbations that no dropout was trained on.

    Args:
        model: trained, any module; its dropout layers may have rate 0.
        x: rows, (rows, ...): a tensor, an array, a table, or a mapping or tuple of them; with y left out, a batch
            (x, y) or a DataLoader of such batches.
        y: the class of each row, (rows,), or a regression's targets, in the shape of the outputs.
        task: how a prediction is scored: "classification" by right or wrong, "regression" by its squared error.
        at: paths of modules whose outputs are the units; by default the inputs of dropout layers and functions.
        shares: shares of units removed at random, in [0, 1].
        top_fractions: shares of each row's activations, the largest of which are removed, in [0, 1].
        noises: sizes of the noise, in root mean squares of each place's activations.
        orders: number of random orders, and of draws of the noise.
        probe_rate: rate at which the interaction share is measured, between 0 and 1.
        members: number of masks for the interaction share.
        class_dim: dimension of the classes in the outputs: -1 for (rows, time, classes). By default found from y.
        seed: of orders, noise and masks.
        batch_size: rows at once.

    Returns:
        Curves with standard errors, and single figures; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, classes that the model does not have, shares outside [0, 1], or
            a model in which no dropout acts on rows and no `at` is named.

    Reference: Srivastava et al.: Dropout (JMLR 2014), section 7; Morcos et al.: On the importance of single directions
        for generalization (ICLR 2018).

    >>> from puredrop import explain
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> x = torch.randn(100, 4)
    >>> found = explain.coadaptation(net, x, net.eval()(x).argmax(1))
    >>> found.curves["random"].score[0], found.interaction < 1
    (1.0, True)
    """
    checked_number("orders", orders, 2)
    checked_number("members", members, 16)
    for name, values in (("shares", shares), ("top_fractions", top_fractions)):
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{name} is {values}; expected numbers in [0, 1]")
    if not 0 < probe_rate < 1:
        raise ValueError(f"probe_rate is {probe_rate}; expected a number between 0 and 1, such as 0.5")
    check_task(task)
    prepared, parts = prepare_with_targets(
        model, x, y, class_dim, _LOSSES[task], seed=seed, batch_size=batch_size, may_be_silent=True
    )
    recorder, read = Recorder(), reader(task, 1)
    with Units(prepared, at).instrument() as outputs:
        unperturbed = torch.cat([outputs(batch, recorder) for batch, _ in parts])
        targets = torch.cat([y for _, y in parts])
        if task == "classification":
            check_classes(targets, unperturbed.shape[1])
        elif targets.numel() != unperturbed.numel():
            raise ValueError(
                f"y has shape {tuple(targets.shape)}; expected {tuple(unperturbed.shape)}, as the model's outputs have"
            )

        def table(perturb: Perturbation) -> NDArray[np.float64]:
            scores = [_scores(outputs(batch, perturb), y, task) for batch, y in parts]
            return torch.cat(scores).double().cpu().numpy()

        def run(perturb: Perturbation) -> Tensor:
            return torch.cat([read(outputs(batch, perturb)).double().cpu().flatten() for batch, _ in parts])

        activations, key = recorder.activations, Key(seed).fold_in("coadaptation")
        curves = {
            "random": _random(table, activations, tuple(shares), key, orders),
            "largest": _largest(table, tuple(top_fractions)),
            "noise": _noise(table, activations, tuple(noises), key.fold_in("noise"), orders),
        }
        units = {place: h.shape[1] for place, h in activations.items()}
        share, error = interaction_share(run, units, probe_rate, members, seed)
    return Coadaptation(
        curves, share, error, probe_rate, recorder.sparsity(), recorder.correlation(), task, prepared.rows
    )


measure = coadaptation


_Table = Callable[[Perturbation], "NDArray[np.float64]"]


def _scores(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """Return how good each row's prediction is."""
    if task == "classification":
        right = outputs.argmax(1) == y
        return right.double().reshape(len(y), -1).mean(1)
    return (outputs - y.reshape(outputs.shape)).square().reshape(len(y), -1).mean(1)


def _random(table: _Table, activations: dict[str, Tensor], shares: tuple[float, ...], key: Key, orders: int) -> Curve:
    ranks = [
        {place: torch.randperm(h.shape[1], generator=_generator(key.fold_in(place).fold_in(number)))
         for place, h in activations.items()}
        for number in range(orders)
    ]  # fmt: skip
    return _curve("random", shares, [[table(remove_ranked(share, rank)) for rank in ranks] for share in shares])


def _largest(table: _Table, shares: tuple[float, ...]) -> Curve:
    tables = [table(remove_largest(share)) for share in shares]
    return _curve("largest", shares, [[each, each] for each in tables])  # an interval needs two orders


def _noise(table: _Table, activations: dict[str, Tensor], scales: tuple[float, ...], key: Key, draws: int) -> Curve:
    sizes = {place: float(h.square().mean().sqrt()) for place, h in activations.items()}
    tables = [
        [table(add_noise(scale, sizes, _generator(key.fold_in(number)))) for number in range(draws)] for scale in scales
    ]
    return _curve("noise", scales, tables)


def _curve(kind: str, sizes: tuple[float, ...], tables: list[list[NDArray[np.float64]]]) -> Curve:
    scores = np.array(tables)
    errors = tuple(paired_difference(table).standard_error for table in scores)
    return Curve(kind, sizes, tuple(scores.mean((1, 2)).tolist()), errors, scores)


def _generator(key: Key) -> torch.Generator:
    return torch.Generator().manual_seed(int(key))


def section(case: Case) -> Section:
    """Say how predictions hold under ablation, with dropout and, where there is such a model, without."""
    s = case.subject
    options: dict[str, Any] = {
        "task": s.task, "orders": max(2, s.members // 4), "members": 4 * s.members, "seed": s.seed,
    }  # fmt: skip
    dropped = measure(case.prepared, s.x, s.y, **options)
    undropped = None
    if s.undropped is not None:
        undropped = measure(s.undropped, s.x, s.y, class_dim=case.prepared.class_dim, **options)
    case.results["coadaptation"] = (dropped, undropped)
    return _alone(dropped) if undropped is None else _compared(dropped, undropped)


def _how(dropped: Coadaptation) -> str:
    return (
        f"{dropped.rows} rows, {dropped.curves['random'].tables.shape[1]} random orders. A network that was trained "
        "with units removed is robust to that by construction. The test is the figure on the right: each row's largest "
        "activations are removed, which no dropout does. Bars: 95 % over orders and rows. Interaction share of the "
        f"masks' variance at p={dropped.probe_rate:g}: {dropped.interaction:.2f} ± {dropped.interaction_error:.2f}; "
        f"activations that are 0: {dropped.sparsity:.0%}; mean |correlation| {dropped.correlation:.2f}, which hardly "
        "differs between networks with and without dropout."
    )


def _scores_of(result: Coadaptation) -> list[str]:
    """Return the scores without ablation, with 75 % of units removed, and with the 5 % largest activations removed."""
    removed, largest = result.curves["random"], result.curves["largest"]
    scores = (removed.score[0], removed.score[removed.sizes.index(0.75)], largest.score[largest.sizes.index(0.05)])
    return [result._shown(score) for score in scores]


def _alone(dropped: Coadaptation) -> Section:
    what = "of rows right" if dropped.task == "classification" else "mean squared error"
    whole, removed, largest = _scores_of(dropped)
    sentence = (
        f"With 75 % of its units removed at random the network is left with {removed} ({what}), down from {whole}; "
        f"with the 5 % largest activations removed, with {largest}. Whether dropout made it so only a network trained "
        "without can tell."
        if dropped.task == "classification"
        else f"With 75 % of its units removed at random the {what} goes from {whole} to {removed}; with the 5 % "
        f"largest activations removed, to {largest}."
    )
    figures = (dropped.figure("random"), dropped.figure("largest"))
    return QUESTION.answer(sentence, removed, f"{what}, 75 % removed", _how(dropped), *figures)


def _compared(dropped: Coadaptation, undropped: Coadaptation) -> Section:
    is_class = dropped.task == "classification"
    what = "of rows right" if is_class else "mean squared error"
    (_, removed, largest), (_, other, others) = _scores_of(dropped), _scores_of(undropped)
    curve = dropped.curves["largest"]
    difference = curve.minus(undropped.curves["largest"])[curve.sizes.index(0.05)]
    sentence = (
        f"With 75 % of units removed at random: {other} without dropout, {removed} with it ({what}). With each row's "
        f"5 % largest activations removed, which neither was trained on: {others} and {largest}, "
        f"{_difference(difference, is_class)}."
    )
    how = (
        f"{_how(dropped)} Without dropout: interaction {undropped.interaction:.2f} ± "
        f"{undropped.interaction_error:.2f}, zeros {undropped.sparsity:.0%}, |correlation| "
        f"{undropped.correlation:.2f}. Both networks are perturbed at the same places in the same orders. An "
        "accuracy-matched network with weight decay was not trained."
    )
    names = ("with dropout", "without dropout")
    figures = (dropped.figure("random", undropped, *names), dropped.figure("largest", undropped, *names))
    return QUESTION.answer(sentence, f"{other} → {removed}", f"{what}, 75 % removed", how, *figures)


def _difference(difference: Difference, is_class: bool) -> str:
    factor, unit, digits = (100, " points", 1) if is_class else (1, "", 4)
    low, high = (signed(factor * end, digits) for end in (difference.low, difference.high))
    if not difference.excludes_zero:
        return f"no difference found [{low}, {high}{unit}]"
    return f"a difference of {signed(factor * difference.estimate, digits)}{unit} [{low}, {high}]"
