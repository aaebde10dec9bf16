"""What is measured on a trained arm: the only place that looks at test rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Parameters
from puredrop.compare.tasks import Judged, Table, Validation
from puredrop.rng import Key

__all__ = ["MEMBERS", "Measured", "ensemble", "measure"]

MEMBERS = 50
_ROWS_AT_ONCE = 4096  # bounds memory; at 10 seeds and 512 units, 84 MB an activation


@dataclass(frozen=True)
class Measured:
    """One way of predicting.

    Args:
        test: judged on the test rows.
        training_nll: (seeds, training rows), or None where not asked for.
    """

    test: Judged
    training_nll: Table | None = None


def measure(parameters: Parameters, network: Model, data: Data) -> Measured:
    """One deterministic pass by weight scaling.

    Args:
        parameters: of all seeds.
        network: its shape.
        data: test rows, validation rows for a likelihood's width, and training rows for the gap.

    Returns:
        Per seed and row.
    """
    test, train = (_outputs(parameters, network, part.x, [None]) for part in (data.test, data.train))
    fitted = _validation(parameters, network, data, [None])
    training = data.task.judge(train, data.train.y.cpu(), fitted)
    return Measured(data.task.judge(test, data.test.y.cpu(), fitted), training.nll)


def ensemble(parameters: Parameters, network: Model, data: Data) -> Measured:
    """The mean of 50 members, each one thinned network for all rows.

    Args:
        parameters: of all seeds.
        network: its shape and rates.
        data: test rows, and validation rows for a likelihood's width.

    Returns:
        Per seed and test row.
    """
    root = Key(0).fold_in("compare").fold_in("ensemble")
    keys: list[Key | None] = [root.fold_in(member) for member in range(MEMBERS)]
    test = _outputs(parameters, network, data.test.x, keys)
    return Measured(data.task.judge(test, data.test.y.cpu(), _validation(parameters, network, data, keys)))


def _validation(parameters: Parameters, network: Model, data: Data, keys: list[Key | None]) -> Validation:
    """The same passes over the validation rows, run where they are asked for."""
    return lambda: (_outputs(parameters, network, data.validation.x, keys), data.validation.y.cpu())


@torch.no_grad()
def _outputs(parameters: Parameters, network: Model, x: Tensor, keys: list[Key | None]) -> Tensor:
    """(keys, seeds, rows, outputs): one pass per key."""
    seeds = next(iter(parameters.values())).shape[0]
    # One mask for all rows of a member, so cutting the rows does not change it.
    chunks = [chunk.expand(seeds, -1, -1) for chunk in x.split(_ROWS_AT_ONCE)]
    passes = [
        torch.cat([network.outputs(parameters, c, key, one_mask=True) for c in chunks], dim=1).cpu() for key in keys
    ]
    return torch.stack(passes)
