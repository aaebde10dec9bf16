"""How much of what masks do to the outputs is no sum over units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from puredrop.explain._damage import Places, Recorder
from puredrop.explain._probe import Probe
from puredrop.rng import Key

__all__ = ["interaction_share"]

_GROUPS = 16


def interaction_share(
    places: Places,
    drive: Any,
    probe: Probe,
    recorder: Recorder,
    read: Callable[[Tensor], Tensor],
    rate: float,
    members: int,
    seed: int,
) -> tuple[float, float]:
    """1 - S1 of what is read from the outputs, and its standard error over masks.

    S1 is the share of the variance over masks that the best sum over units explains, Σ_j Cov(f, m_j)² / (pq) over
    Var f, summed over rows and outputs. Squared covariances are taken without the terms of one member with itself, so
    that they are unbiased also where members are fewer than units; the error is the jackknife's over 16 groups.

    Args:
        places, drive, probe: the open model.
        recorder: which has seen its units.
        read: from what the model gives: a classification's probabilities, in which units interact by the softmax too.
        rate: at which units are dropped (and the others scaled).
        members: masks, each for all rows.
        seed: of them.

    Reference: Saltelli et al.: Global sensitivity analysis: the primer (2008), first-order effects.
    """
    sizes = {place: parts[0].shape[1] for place, parts in recorder.seen.items()}
    key = Key(seed).fold_in("interaction")
    generator = torch.Generator().manual_seed(int(key))
    units = sum(sizes.values())
    keep = torch.rand(members, units, generator=generator) >= rate
    outputs = torch.stack(
        [_outputs(places, drive, probe, sizes, read, one, rate) for one in keep]
    )  # (members, numbers)
    outputs = outputs - outputs.mean(0)
    signs = (keep.double() - (1 - rate)) / (rate * (1 - rate)) ** 0.5
    groups = torch.arange(members) % _GROUPS
    whole = _share(outputs, signs)
    parts = torch.stack([_share(outputs[groups != one], signs[groups != one]) for one in range(_GROUPS)])
    spread = (_GROUPS - 1) / _GROUPS * (parts - parts.mean()).square().sum()
    return 1 - float(whole), float(spread.sqrt())


def _share(outputs: Tensor, signs: Tensor) -> Tensor:
    count = len(outputs)
    outputs = outputs - outputs.mean(0)
    own = (outputs.square().sum(1) * signs.square().sum(1)).sum()
    explained = ((signs.T @ outputs).square().sum() - own) / (count * (count - 1))
    return explained / outputs.var(0).sum()


def _outputs(
    places: Places,
    drive: Any,
    probe: Probe,
    sizes: dict[str, int],
    read: Callable[[Tensor], Tensor],
    keep: Tensor,
    rate: float,
) -> Tensor:
    parts = dict(zip(sizes, keep.split(list(sizes.values())), strict=True))

    def damage(place: str, h: Tensor) -> Tensor:
        factor: Tensor = (parts[place].to(h.dtype) / (1 - rate)).view(h.shape[1:]).to(h.device)
        return h * factor

    return torch.cat([read(places.outputs(drive, one, damage)).double().cpu().flatten() for one in probe.batches])
