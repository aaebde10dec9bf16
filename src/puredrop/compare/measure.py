"""What is measured on a trained arm: the only place that looks at test rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puredrop.compare.data import Data, Split
from puredrop.compare.network import Network, Parameters
from puredrop.rng import Key

__all__ = ["MEMBERS", "Measured", "Table", "ensemble", "measure"]

MEMBERS = 50
_ROWS_AT_ONCE = 4096  # bounds memory; at 10 seeds and 512 units, 84 MB an activation

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One way of predicting, on every seed and row.

    Args:
        nll: (seeds, test rows), negative log likelihood in nats.
        error: (seeds, test rows), 1 where the most likely class is wrong.
        calibration: (seeds,), expected calibration error, 15 bins.
        training_nll: (seeds, training rows), or None where not asked for.
    """

    nll: Table
    error: Table
    calibration: Table
    training_nll: Table | None = None


@torch.no_grad()
def measure(parameters: Parameters, network: Network, data: Data) -> Measured:
    """One deterministic pass by weight scaling.

    Args:
        parameters: of all seeds.
        network: its shape.
        data: test rows, and training rows for the gap.

    Returns:
        Per seed and row.
    """
    log_probabilities = _log_probabilities(parameters, network, data.test.x)
    training = _log_probabilities(parameters, network, data.train.x)
    return _judge(log_probabilities, data.test, _nll(training, data.train.y))


@torch.no_grad()
def ensemble(parameters: Parameters, network: Network, data: Data) -> Measured:
    """The arithmetic mean of the probabilities of 50 members, each one thinned network for all rows.

    Args:
        parameters: of all seeds.
        network: its shape and rates.
        data: test rows.

    Returns:
        Per seed and test row.
    """
    root = Key(0).fold_in("compare").fold_in("ensemble")
    total: Tensor | None = None
    for member in range(MEMBERS):
        one = _log_probabilities(parameters, network, data.test.x, root.fold_in(member))
        total = one if total is None else torch.logaddexp(total, one)
    assert total is not None
    return _judge(total - math.log(MEMBERS), data.test)


def _log_probabilities(parameters: Parameters, network: Network, x: Tensor, key: Key | None = None) -> Tensor:
    """(seeds, rows, classes) in float64, so that a mean of many members keeps its digits."""
    seeds = next(iter(parameters.values())).shape[0]
    chunks = x.split(_ROWS_AT_ONCE)
    # One mask for all rows of a member, so cutting the rows does not change it.
    logits = [network.logits(parameters, chunk.expand(seeds, -1, -1), key, one_mask=True) for chunk in chunks]
    return torch.cat(logits, dim=1).double().log_softmax(-1)


def _nll(log_probabilities: Tensor, y: Tensor) -> Table:
    index = y.expand(log_probabilities.shape[:2]).unsqueeze(-1)
    nll: Table = -log_probabilities.gather(-1, index).squeeze(-1).numpy()
    return nll


def _judge(log_probabilities: Tensor, rows: Split, training_nll: Table | None = None) -> Measured:
    from torchmetrics.functional.classification import multiclass_calibration_error

    wrong = (log_probabilities.argmax(-1) != rows.y).double().numpy()
    classes = log_probabilities.shape[-1]
    calibration = [
        multiclass_calibration_error(one.exp(), rows.y, num_classes=classes, n_bins=15).item()
        for one in log_probabilities
    ]
    return Measured(_nll(log_probabilities, rows.y), wrong, np.array(calibration), training_nll)
