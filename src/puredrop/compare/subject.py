"""One network of a run, with the undropped model of the same seed, as `explain` analyses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Network, Parameters
from puredrop.compare.options import CompareOptions
from puredrop.compare.training import BATCH
from puredrop.explanation.analysis import Subject

__all__ = ["options_of", "subject", "weights_of"]


def subject(
    data: Data, network: Model, weights: dict[str, Parameters], copy: int, epochs: int, members: int = 64, seed: int = 0
) -> Subject:
    """Return a copy trained with dropout, with the undropped model of the same seed.

    Args:
        data: of the run.
        network: its shape.
        weights: arm -> parameters of all seeds.
        copy: which seed.
        epochs: that the arm with dropout was trained for.
        members, seed: as `Subject` has them.
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
    """Yield the masks of every row of every step; the last step of an epoch may have fewer rows."""
    steps = -(-rows // BATCH)
    for epoch in range(epochs):
        whole = range(epoch * steps, epoch * steps + rows // BATCH)
        yield from network.masks(whole, seeds, copy, BATCH)
        if rows % BATCH:
            yield from network.masks([epoch * steps + steps - 1], seeds, copy, rows % BATCH)


def options_of(identity: dict[str, Any], data_dir: Path | None) -> CompareOptions:
    """Return the options of a finished run that concern its data and its network."""
    wanted = ["data", "target", "group", "time", "split_seed", "model", "rows"]
    if identity["target"] is not None:
        wanted.append("task")
    if identity["model"] is None:
        wanted += ["hidden", "rates", "input_rate"]
    given: dict[str, Any] = {name: identity[name] for name in wanted}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return replace(CompareOptions(data_dir=data_dir), **{**given, **lists})


def weights_of(folder: Path) -> tuple[dict[str, Any], dict[str, Parameters]]:
    """Read the results of a finished run, and the weights of its arms with and without dropout.

    Raises:
        ValueError, OSError: with one line, for what is no such run.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
        weights = {
            name: safetensors.torch.load_file(folder / f"weights-{name}.safetensors") for name in ("none", "dropout")
        }
    except (json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder} is no whole run of compare ({error}); run it again") from error
    return found, weights
