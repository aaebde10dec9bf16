"""The mean of all members by running each of them: the truth that approximations are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from puredrop.members.engine import Engine
from puredrop.members.inputs import Batch
from puredrop.members.masks import EnumeratedMasks, Masks
from puredrop.members.sites import SiteUse

__all__ = ["MOST_UNITS", "exact", "enumerated_masks"]

MOST_UNITS = 20
"""The most units that are enumerated: 2^20 members."""


def enumerated_masks(uses: Sequence[SiteUse]) -> Callable[[str, int], Masks]:
    """Return a function path, call -> masks that enumerate all states of the units of a forward.

    Raises:
        ValueError: if there are too many units, or a site draws noise other than dropout.
    """
    first, places = 0, {}
    for use in uses:
        if math.isnan(use.p):
            raise ValueError(f"exact: {use.path} draws more than decisions on elements, which cannot be enumerated")
        places[use.path, use.call] = EnumeratedMasks(first)
        first += use.units
    if first > MOST_UNITS:
        raise ValueError(
            f"exact: the model drops {first} units, which makes 2^{first} members; at most {MOST_UNITS} units can be "
            "enumerated (predict samples them; weight_scaling and moments approximate)"
        )
    return lambda path, call: places[path, call]


def _probabilities(numbers: Tensor, uses: Sequence[SiteUse]) -> Tensor:
    """Return the members' probabilities, float64: the product of p for each dropped and 1-p for each kept unit."""
    weights, first = torch.ones(len(numbers), dtype=torch.float64), 0
    for use in uses:
        kept = ((numbers[:, None] >> torch.arange(first, first + use.units)) & 1).sum(1, dtype=torch.float64)
        weights = weights * (1 - use.p) ** kept * use.p ** (use.units - kept)
        first += use.units
    return weights


def exact(engine: Engine, batch: Batch, uses: Sequence[SiteUse], chunk: int) -> Tensor:
    """Return the mean of the engine's outputs over all members, float64; the engine must be open.

    Args:
        engine: runs the members under enumerated masks.
        batch: the rows.
        uses: the uses of sites in one forward.
        chunk: number of members at once.
    """
    number = 2 ** sum(use.units for use in uses)
    total: Tensor | None = None
    for start in range(0, number, chunk):
        numbers = range(start, min(start + chunk, number))
        outputs = engine.outputs(batch, numbers).double().cpu()
        weights = _probabilities(torch.tensor(numbers), uses)
        part = torch.tensordot(weights, outputs, 1)
        total = part if total is None else total + part
    assert total is not None
    return total
