"""The mean of all members, by running every one of them: the truth beside which approximations are judged."""

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
"""Units of a model that may be enumerated: 2^20 members."""


def enumerated_masks(uses: Sequence[SiteUse]) -> Callable[[str, int], Masks]:
    """Path, call -> masks that list all states of the units that a forward decides.

    Raises:
        ValueError: if there are more than can be enumerated, or something is drawn that is no decision.
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
    """Of members, float64: p for each unit that is dropped, 1-p for each that is kept."""
    weights, first = torch.ones(len(numbers), dtype=torch.float64), 0
    for use in uses:
        kept = ((numbers[:, None] >> torch.arange(first, first + use.units)) & 1).sum(1, dtype=torch.float64)
        weights = weights * (1 - use.p) ** kept * use.p ** (use.units - kept)
        first += use.units
    return weights


def exact(engine: Engine, batch: Batch, uses: Sequence[SiteUse], chunk: int) -> Tensor:
    """The mean over all members of what the engine reads, float64; the engine must be open.

    Args:
        engine: whose members have the masks that are listed.
        batch: the rows.
        uses: of one forward.
        chunk: members at once.
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
