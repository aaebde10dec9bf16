"""Do units rely on each other: what is left when some are removed, and how much of the masks' effect is interaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._ablation import Damage, Places, Recorder, gaussian, largest, ordered
from puredrop.explanation._interaction import interaction_share
from puredrop.explanation._loss import check_classes
from puredrop.members.inputs import checked_number
from puredrop.members.outputs import reader
from puredrop.members.prepared import prepare
from puredrop.report.figures import Figure
from puredrop.report.intervals import Difference, paired_difference
from puredrop.rng import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Coadaptation", "Curve", "coadaptation"]

Task = Literal["classification", "regression"]
_NAMES = {
    "random": "units removed at random",
    "largest": "largest activations removed (not trained on)",
    "noise": "Gaussian noise added (not trained on)",
}
_AXES = {"random": "units removed (%)", "largest": "activations removed (%)", "noise": "noise / activations' size"}


@dataclass(frozen=True)
class Curve:
    """How good predictions are under damage of growing size.

    Args:
        kind: "random", "largest" or "noise".
        sizes: of the damage: a share of units, or of noise the multiple of the activations' root mean square.
        score: at each: the share of rows that is right, or, of a regression, the mean squared error.
        standard_error: of it, over orders and rows.
        tables: float64 (sizes, orders, rows), score by row; of "largest", for which nothing is drawn, the same twice.
    """

    kind: str
    sizes: tuple[float, ...]
    score: tuple[float, ...]
    standard_error: tuple[float, ...]
    tables: NDArray[np.float64]

    def minus(self, other: Curve) -> tuple[Difference, ...]:
        """Difference of the scores at each size, paired by order and row, with 95 % intervals.

        Raises:
            ValueError: for curves of other damage, orders or rows.
        """
        if self.tables.shape != other.tables.shape or (self.kind, self.sizes) != (other.kind, other.sizes):
            raise ValueError("other has other sizes, orders or rows; expected a curve measured in the same way")
        return tuple(paired_difference(a - b) for a, b in zip(self.tables, other.tables, strict=True))


@dataclass(frozen=True)
class Coadaptation:
    """How much units rely on each other.

    Args:
        curves: damage by kind. A net that was trained on removed units is robust to that by construction; the other two
            it was not trained on.
        interaction: 1 - S1, the share of the masks' variance in probabilities (a regression's outputs) that is no sum
            over units, at `probe_rate`.
        interaction_error: its standard error over masks.
        probe_rate: the rate at which every model is probed, whatever it was trained with.
        sparsity: share of activations that are 0.
        correlation: mean |correlation| between units over rows: shown because people ask for it. It says little: .33
            with dropout and .35 without on the digits, where the other figures differ by half (docs/theory.md).
        task: what was scored.
        rows: of the data.
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
        self, kind: str = "random", against: Coadaptation | None = None, name: str = "", other: str = ""
    ) -> Figure:
        """A curve of damage with 95 % bars, and beside it that of another model.

        Args:
            kind: "random", "largest" or "noise".
            against: measured likewise.
            name, other: of the two.
        """
        traces: list[dict[str, Any]] = []
        is_class, words = self.task == "classification", []
        factor = 100 if is_class else 1
        for found, label, color in ((self, name or "this model", "@dropout"), (against, other or "other", "@none")):
            if found is None:
                continue
            curve = found.curves[kind]
            x = [size if kind == "noise" else 100 * size for size in curve.sizes]
            y = [factor * score for score in curve.score]
            bars = {"array": [1.96 * factor * error for error in curve.standard_error], "thickness": 1.5, "width": 4}
            traces.append(
                {"x": x, "y": y, "error_y": bars, "mode": "lines+markers", "name": label, "line": {"color": color},
                 "hovertemplate": "%{x:g}: %{y:.4g}<extra>" + label + "</extra>"}
            )  # fmt: skip
            words.append(f"{label} " + ", ".join(f"{b:.4g} at {a:g}" for a, b in zip(x, y, strict=True)))
        title = "rows that are right (%)" if is_class else "mean squared error"
        layout = {"xaxis": {"title": {"text": _AXES[kind]}}, "yaxis": {"title": {"text": title}}}
        return Figure(f"{_NAMES[kind]}: {'; '.join(words)}", traces, layout)


def coadaptation(
    model: Module,
    x: Any,
    y: Any,
    *,
    task: Task = "classification",
    at: Sequence[str] | None = None,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9),
    top_fractions: Sequence[float] = (0.0, 0.02, 0.05, 0.1, 0.2),
    noises: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    orders: int = 16,
    probe_rate: float = 0.5,
    members: int = 256,
    seed: int = 0,
    batch_size: int = 1024,
) -> Coadaptation:
    """Measure how much the units of a model rely on each other.

    Units are removed (the others scaled, so that sums keep their size) at every place at once, in random orders: the
    same ones for every model of the same shape, so that two can be compared pair by pair (`Curve.minus`). Then each
    row's largest activations are removed, and Gaussian noise is added: damage that no dropout was trained on.

    Args:
        model: trained, any module; its dropout layers may have rate 0.
        x, y: rows, and what belongs to each: classes, or a regression's targets.
        task: how a prediction is scored: right or wrong, or by its squared error.
        at: paths of modules whose outputs are the units; by default what dropout layers and functions are given.
        shares: of units removed at random.
        top_fractions: of each row's activations, the largest of which are removed.
        noises: sizes of the noise, in root mean squares of each place's activations.
        orders: random orders; of the noise, draws.
        probe_rate: at which the interaction share is measured.
        members: masks for that.
        seed: of orders, noise and masks.
        batch_size: rows at once.

    Returns:
        Curves with standard errors, and single figures; it prints.

    Raises:
        TypeError, ValueError: for fewer than two rows, classes that the model does not have, shares outside [0, 1], or
            a model in which no dropout acts on rows and no `at` is named.

    Reference: Srivastava et al.: Dropout (JMLR 2014), section 7; Morcos et al.: On the importance of single directions
        for generalization (ICLR 2018).

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> x = torch.randn(100, 4)
    >>> found = coadaptation(net, x, net.eval()(x).argmax(1))
    >>> found.curves["random"].score[0], 0 < found.interaction < 1
    (1.0, True)
    """
    checked_number("orders", orders, 2)
    checked_number("members", members, 16)
    for name, values in (("shares", shares), ("top_fractions", top_fractions)):
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{name} is {values}; expected numbers in [0, 1]")
    if not 0 < probe_rate < 1:
        raise ValueError(f"probe_rate is {probe_rate}; expected a number between 0 and 1, such as 0.5")
    if task not in ("classification", "regression"):
        raise ValueError(f"task is {task!r}; expected 'classification' or 'regression'")
    prepared = prepare(model, x, seed=seed, batch_size=batch_size, may_be_silent=True)
    parts, recorder, read = prepared.with_targets(y), Recorder(), reader(task, 1)
    with Places(prepared, at).opened() as outputs:
        undamaged = torch.cat([outputs(batch, recorder) for batch, _ in parts])
        targets = torch.cat([y for _, y in parts])
        if task == "classification":
            check_classes(targets, undamaged.shape[1])
        elif targets.numel() != undamaged.numel():
            raise ValueError(
                f"y has shape {tuple(targets.shape)}; expected {tuple(undamaged.shape)}, as the model's outputs have"
            )

        def table(damage: Damage) -> NDArray[np.float64]:
            found = [_scores(outputs(batch, damage), y, task) for batch, y in parts]
            return torch.cat(found).double().cpu().numpy()

        def run(damage: Damage) -> Tensor:
            return torch.cat([read(outputs(batch, damage)).double().cpu().flatten() for batch, _ in parts])

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


_Table = Callable[[Damage], "NDArray[np.float64]"]


def _scores(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """How good each row's prediction is."""
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
    return _curve("random", shares, [[table(ordered(share, one)) for one in ranks] for share in shares])


def _largest(table: _Table, shares: tuple[float, ...]) -> Curve:
    found = [table(largest(share)) for share in shares]
    return _curve("largest", shares, [[one, one] for one in found])  # an interval wants two


def _noise(table: _Table, activations: dict[str, Tensor], scales: tuple[float, ...], key: Key, draws: int) -> Curve:
    sizes = {place: float(h.square().mean().sqrt()) for place, h in activations.items()}
    found = [
        [table(gaussian(scale, sizes, _generator(key.fold_in(number)))) for number in range(draws)] for scale in scales
    ]
    return _curve("noise", scales, found)


def _curve(kind: str, sizes: tuple[float, ...], tables: list[list[NDArray[np.float64]]]) -> Curve:
    found = np.array(tables)
    errors = tuple(paired_difference(one).standard_error for one in found)
    return Curve(kind, sizes, tuple(found.mean((1, 2)).tolist()), errors, found)


def _generator(key: Key) -> torch.Generator:
    return torch.Generator().manual_seed(int(key))
