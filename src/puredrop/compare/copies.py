"""One copy of a run's network, with the undropped copy of the same seed, as `explain` takes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, cast

from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Network, Parameters
from puredrop.compare.training import BATCH
from puredrop.explanation.analysis import Subject

__all__ = ["copy_of_run"]


def copy_of_run(
    data: Data, network: Model, weights: dict[str, Parameters], copy: int, epochs: int, members: int = 64, seed: int = 0
) -> Subject:
    """Return a copy trained with dropout, the copy of the same seed trained without, and the run's data.

    Args:
        data: of the run.
        network: the shape of the network.
        weights: arm -> parameters of all seeds.
        copy: the number of the seed.
        epochs: epochs that the arm with dropout was trained for.
        members: masks and members that are run.
        seed: of masks and members.
    """
    rows = len(data.train.y)
    masks = None
    if isinstance(network, Network):
        seeds = len(next(iter(weights["dropout"].values())))
        masks = partial(_masks, network, epochs, rows, seeds, copy)
    return Subject(
        data.name,
        network.module(weights["dropout"], copy),
        data.test.x,
        data.test.y,
        cast(Literal["classification", "regression"], data.task.name),
        data.train.x,
        data.train.y,
        undropped=network.module(weights["none"], copy, dropout=False),
        draws=epochs * rows,
        masks=masks,
        members=members,
        seed=seed,
    )


def _masks(network: Network, epochs: int, rows: int, seeds: int, copy: int) -> Iterator[dict[str, Tensor]]:
    """Draw again the masks of every step of the training; the last step of an epoch may have fewer rows."""
    steps = -(-rows // BATCH)
    for epoch in range(epochs):
        whole = range(epoch * steps, epoch * steps + rows // BATCH)
        yield from network.masks(whole, seeds, copy, BATCH)
        if rows % BATCH:
            yield from network.masks([epoch * steps + steps - 1], seeds, copy, rows % BATCH)
