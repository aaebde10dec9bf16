"""What is measured on a trained arm: the only place that looks at test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Parameters
from puredrop.compare.tasks import Judged, Table, Validation
from puredrop.rng import Key

__all__ = ["MEMBERS", "NETWORKS", "Measured", "Members", "ensemble", "measure"]

MEMBERS = 50
NETWORKS = 5
_ROWS_AT_ONCE = 4096  # bounds memory; at 10 seeds and 512 units, 84 MB an activation

_Passes = Sequence[tuple[Parameters, Key | None]]


@dataclass(frozen=True)
class Measured:
    """One way of predicting.

    Args:
        test: judged on the test rows.
        training_nll: (seeds, training rows).
    """

    test: Judged
    training_nll: Table


@dataclass(frozen=True)
class Members:
    """The mean of members, and of fewer of them.

    Args:
        test: the mean of all, judged on the test rows.
        nll_of: number of members -> (seeds, rows), the NLL of the mean of so many, itself the mean over all disjoint
            groups of so many.
    """

    test: Judged
    nll_of: dict[int, Table]


def measure(parameters: Parameters, network: Model, data: Data, *more: Parameters) -> Measured:
    """One deterministic pass by weight scaling; or the mean of the passes of several networks of each seed.

    Args:
        parameters: of all seeds.
        network: its shape.
        data: test rows, validation rows for a likelihood's width, and training rows for the gap.
        more: further networks of the same seeds.

    Returns:
        Per seed and row.
    """
    passes = [(one, None) for one in (parameters, *more)]
    test, train = (_outputs(passes, network, part.x) for part in (data.test, data.train))
    fitted = _validation(passes, network, data)
    training = data.task.nll(train, data.train.y.cpu(), fitted)
    return Measured(data.task.judge(test, data.test.y.cpu(), fitted), training)


def ensemble(parameters: Parameters, network: Model, data: Data) -> Members:
    """The mean of 50 members, each one thinned network for all rows.

    Args:
        parameters: of all seeds.
        network: its shape and rates.
        data: test rows, and validation rows for a likelihood's width.

    Returns:
        Per seed and test row.
    """
    root = Key(0).fold_in("compare").fold_in("ensemble")
    passes = [(parameters, root.fold_in(member)) for member in range(MEMBERS)]
    test, y = _outputs(passes, network, data.test.x), data.test.y.cpu()
    fitted = _validation(passes, network, data)

    def nll_of(number: int) -> Table:
        groups = [slice(first, first + number) for first in range(0, MEMBERS, number)]
        tables: list[Table] = [data.task.nll(test[some], y, _some(fitted, some)) for some in groups]
        return np.asarray(sum(tables) / len(tables))

    numbers = [number for number in range(1, MEMBERS) if MEMBERS % number == 0]
    judged = data.task.judge(test, y, fitted)
    return Members(judged, {**{number: nll_of(number) for number in numbers}, MEMBERS: judged.nll})


def _validation(passes: _Passes, network: Model, data: Data) -> Validation:
    """The same passes over the validation rows, run once, and only where they are asked for."""
    return cache(lambda: (_outputs(passes, network, data.validation.x), data.validation.y.cpu()))


def _some(validation: Validation, passes: slice) -> Validation:
    def some() -> tuple[Tensor, Tensor]:
        outputs, y = validation()
        return outputs[passes], y

    return some


@torch.no_grad()
def _outputs(passes: _Passes, network: Model, x: Tensor) -> Tensor:
    """(passes, seeds, rows, outputs)."""
    seeds = next(iter(passes[0][0].values())).shape[0]
    # One mask for all rows of a member, so cutting the rows does not change it.
    chunks = [chunk.expand(seeds, -1, -1) for chunk in x.split(_ROWS_AT_ONCE)]
    found = [
        torch.cat([network.outputs(one, c, key, one_mask=True) for c in chunks], dim=1).cpu() for one, key in passes
    ]
    return torch.stack(found)
