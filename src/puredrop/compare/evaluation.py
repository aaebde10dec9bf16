"""Evaluation of trained arms: the only file that uses test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Parameters
from puredrop.compare.tasks import Judged, Table, Task, Validation
from puredrop.ensemble import risk_coverage
from puredrop.report.environment import machine_memory
from puredrop.rng import Key

__all__ = [
    "COVERAGES",
    "MEMBERS",
    "NETWORKS",
    "Evaluation",
    "MemberEvaluation",
    "SelectivePrediction",
    "check_memory",
    "evaluate",
    "evaluate_members",
    "selective_prediction",
]

MEMBERS = 50
_BYTES = 64  # of memory at the peak for each number of the members' outputs, measured
NETWORKS = 5
COVERAGES = tuple(k / 20 for k in range(2, 21))
"""Shares of rows kept, at which risk-coverage curves are written down; below a tenth a row or two decide."""
_ROWS_AT_ONCE = 4096  # bounds memory; at 10 seeds and 512 units, 84 MB an activation

_Passes = Sequence[tuple[Parameters, Key | None]]


@dataclass(frozen=True)
class Evaluation:
    """One way of predicting, evaluated.

    Args:
        test: judged on the test rows.
        training_nll: (seeds, training rows).
    """

    test: Judged
    training_nll: Table


@dataclass(frozen=True)
class MemberEvaluation:
    """The mean of all members, and of fewer of them, evaluated.

    Args:
        test: the mean of all members, judged on the test rows.
        nll_of: number of members -> (seeds, rows), the NLL of the mean of that many members, averaged over all
            disjoint groups of that many.
    """

    test: Judged
    nll_of: dict[int, Table]


def check_memory(task: Task, test_rows: int, seeds: int) -> None:
    """Raise ValueError if the members' outputs for all test rows and classes are more than the machine's memory.

    Args:
        task: of one output, or of a number of classes.
        test_rows: number of test rows.
        seeds: number of seeds.
    """
    needed, there = _BYTES * MEMBERS * seeds * test_rows * task.outputs, machine_memory()
    if task.outputs > 1 and there is not None and needed > there:
        raise ValueError(
            f"{task.outputs} classes need {needed / 1e9:.1f} GB, since {MEMBERS} members of {seeds} seeds are "
            f"evaluated on {test_rows} test rows, and this machine has {there / 1e9:.1f}; expected fewer "
            "(join classes, use fewer --seeds, or --task regression)"
        )


def evaluate(parameters: Parameters, network: Model, data: Data, *further: Parameters) -> Evaluation:
    """Evaluate one deterministic pass by weight scaling, or the mean of the passes of several networks of each seed.

    Args:
        parameters: of all seeds.
        network: the shape of the network.
        data: test rows, validation rows for a likelihood's width, and training rows for the gap.
        further: further networks of the same seeds.
    """
    passes = [(networks, None) for networks in (parameters, *further)]
    test, train = (_outputs(passes, network, split.x) for split in (data.test, data.train))
    validation = _validation(passes, network, data)
    training = data.task.nll(train, data.train.y.cpu(), validation)
    return Evaluation(data.task.judge(test, data.test.y.cpu(), validation), training)


def evaluate_members(parameters: Parameters, network: Model, data: Data) -> MemberEvaluation:
    """Evaluate the mean of 50 members, each one thinned network for all rows.

    Args:
        parameters: of all seeds.
        network: the shape of the network and its rates.
        data: test rows, and validation rows for a likelihood's width.
    """
    root = Key(0).fold_in("compare").fold_in("ensemble")
    passes = [(parameters, root.fold_in(member)) for member in range(MEMBERS)]
    test, y = _outputs(passes, network, data.test.x), data.test.y.cpu()
    validation = _validation(passes, network, data)

    def nll_of(number: int) -> Table:
        groups = [slice(first, first + number) for first in range(0, MEMBERS, number)]
        tables: list[Table] = [data.task.nll(test[group], y, _of_group(validation, group)) for group in groups]
        return np.asarray(sum(tables) / len(tables))

    divisors = [number for number in range(1, MEMBERS) if MEMBERS % number == 0]
    judged = data.task.judge(test, y, validation)
    return MemberEvaluation(judged, {**{number: nll_of(number) for number in divisors}, MEMBERS: judged.nll})


def _validation(passes: _Passes, network: Model, data: Data) -> Validation:
    """Return a function to the outputs and targets of the validation rows, computed at its first call only."""
    return cache(lambda: (_outputs(passes, network, data.validation.x), data.validation.y.cpu()))


def _of_group(validation: Validation, group: slice) -> Validation:
    """Return the same function for some of the passes."""

    def of_group() -> tuple[Tensor, Tensor]:
        outputs, y = validation()
        return outputs[group], y

    return of_group


@torch.no_grad()
def _outputs(passes: _Passes, network: Model, x: Tensor) -> Tensor:
    """Run every pass over rows: (rows, features) to (passes, seeds, rows, outputs)."""
    seeds = next(iter(passes[0][0].values())).shape[0]
    # One mask for all rows of a member, so cutting the rows does not change it.
    chunks = [chunk.expand(seeds, -1, -1) for chunk in x.split(_ROWS_AT_ONCE)]
    return torch.stack(
        [
            torch.cat([network.outputs(parameters, chunk, key, one_mask=True) for chunk in chunks], dim=1).cpu()
            for parameters, key in passes
        ]
    )


@dataclass(frozen=True)
class SelectivePrediction:
    """Risk-coverage curves of all seeds: the mean loss of the most confident rows, by the share of rows kept.

    Args:
        risk: (seeds, len(COVERAGES)), the mean loss of the most confident share of rows.
        area: (seeds, rows); the mean over rows is the area under a seed's curve, and the variance over rows is that
            of the area.
    """

    risk: Table
    area: Table


def selective_prediction(uncertainty: Table, losses: Table) -> SelectivePrediction:
    """Abstain on the most uncertain rows, share by share.

    Args:
        uncertainty: (seeds, rows).
        losses: (seeds, rows).

    Reference: El-Yaniv and Wiener: On the foundations of noise-free selective classification (JMLR 2010).
    """
    curves = [risk_coverage(*pair) for pair in zip(torch.tensor(uncertainty), torch.tensor(losses), strict=True)]
    rows = uncertainty.shape[1]
    at = [max(1, round(coverage * rows)) - 1 for coverage in COVERAGES]
    risk = np.stack([curve.risk.numpy()[at] for curve in curves])
    area = np.stack([_area_by_row(*seed) for seed in zip(uncertainty, losses, strict=True)])
    means = np.array([curve.area for curve in curves])
    return SelectivePrediction(risk, area - area.mean(1, keepdims=True) + means[:, None])


def _area_by_row(uncertainty: Table, losses: Table) -> Table:
    """Return the jackknife's pseudo-values of the area: n times the area, less n - 1 times the area without the row.

    The area is the mean over rows of loss times a(rank), a(r) = 1/r + ... + 1/n: a row counts in every risk from its
    own rank on. Without it, the rows after it move up by one rank.

    Reference: Efron and Tibshirani: An introduction to the bootstrap (1993), chapter 11.
    """
    order = uncertainty.argsort(kind="stable")
    rows, sorted_losses = len(losses), losses[order]
    rank = np.arange(1, rows + 1)
    weight = np.cumsum(1 / rank[::-1])[::-1]
    moved = np.concatenate([sorted_losses[1:] / rank[:-1], [0.0]])  # of each later row, 1/(rank - 1)
    after = np.cumsum(moved[::-1])[::-1]
    values = np.empty(rows)
    values[order] = sorted_losses * weight + (losses.sum() - sorted_losses) / rows - after
    return values
