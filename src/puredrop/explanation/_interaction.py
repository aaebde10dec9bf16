"""How much of what masks do to the outputs is no sum over units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from puredrop.explanation._ablation import Damage
from puredrop.report.intervals import jackknife_error
from puredrop.rng import Key

__all__ = ["interaction_share"]

_GROUPS = 16


def interaction_share(
    outputs: Callable[[Damage], Tensor], sizes: dict[str, int], rate: float, members: int, seed: int
) -> tuple[float, float]:
    """1 - S1 of what a model gives, and its standard error over masks.

    S1 is the share of the variance over masks that the best sum over units explains, Σ_j Cov(f, m_j)² / (pq) over
    Var f, summed over rows and outputs. Squared covariances are taken without the terms of one member with itself, so
    that they are unbiased also where members are fewer than units; the error is the jackknife's over 16 groups.

    Args:
        outputs: of all rows, under damage; (numbers,).
        sizes: place -> its units.
        rate: at which units are dropped, the others scaled.
        members: masks, each for all rows.
        seed: of them.

    Reference: Saltelli et al.: Global sensitivity analysis: the primer (2008), first-order effects.
    """
    generator = torch.Generator().manual_seed(int(Key(seed).fold_in("interaction")))
    keep = torch.rand(members, sum(sizes.values()), generator=generator) >= rate
    found = torch.stack([outputs(_dropping(one, sizes, rate)) for one in keep])
    centred = (keep.double() - (1 - rate)) / (rate * (1 - rate)) ** 0.5
    found = found - found.mean(0)
    pairs = (found @ found.T, centred @ centred.T)
    groups = torch.arange(members) % _GROUPS
    without = [_share(*(one[groups != g][:, groups != g] for one in pairs)) for g in range(_GROUPS)]
    return 1 - float(_share(*pairs)), float(jackknife_error(torch.stack(without)))


def _share(outputs: Tensor, masks: Tensor) -> Tensor:
    """S1 from the products of members' outputs with each other, and of their centred masks, (members, members).

    The squared length of Σ_s mask_s output_s is the sum of both products' products: nothing of the outputs' size.
    """
    count = len(outputs)
    outputs = outputs - outputs.mean(0) - outputs.mean(1, keepdim=True) + outputs.mean()
    both = outputs * masks
    explained = (both.sum() - both.trace()) / (count * (count - 1))
    return explained / (outputs.trace() / (count - 1))


def _dropping(keep: Tensor, sizes: dict[str, int], rate: float) -> Damage:
    parts = dict(zip(sizes, keep.split(list(sizes.values())), strict=True))

    def damage(place: str, h: Tensor) -> Tensor:
        factor: Tensor = (parts[place] / (1 - rate)).to(h).view(h.shape[1:])
        return h * factor

    return damage
