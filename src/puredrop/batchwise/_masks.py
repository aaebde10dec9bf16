"""Masks that groups of samples share: the contract's, each group having its first sample's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from puredrop import ops
from puredrop.batchwise._groups import Groups, Split
from puredrop.batchwise._kept import Kept
from puredrop.reproducible import Samples
from puredrop.rng import Key, as_key_number, as_key_tensor

__all__ = ["Mask", "Ranks", "draw"]

Ranks = Literal["own", "same"]


class Mask(NamedTuple):
    """One use's mask: what each group of samples keeps.

    Args:
        kept: the units.
        split: how the batch is in groups.
        scale: 1/(1-p); 0 where all are dropped for sure.
    """

    kept: Kept
    split: Split
    scale: float


class _Plan(NamedTuple):
    """What all masks of a shape have in common.

    Args:
        split: how the batch is in groups.
        whole: a tensor of the shape, without memory.
        units: one element for each unit of each group.
        place: of the whole.
        first: of the units, where a batch is a whole step: the places of each group's first sample.
    """

    split: Split
    whole: Tensor
    units: Tensor
    place: ops.Place
    first: ops.Place


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], sample: int, unit: int, groups: Groups, device: torch.device) -> _Plan:
    """Of which a model has few; making one takes as long as its mask."""
    split = groups.of(shape[sample], torch.Size(shape).numel() // max(1, shape[unit]))
    sizes = [1] * len(shape)
    sizes[sample], sizes[unit] = split.groups, shape[unit]
    place = ops.Place(tuple(d for d in range(len(shape)) if d not in (sample, unit)))
    with torch.inference_mode(False):
        starts = torch.tensor(split.starts, device=device)
        one = torch.ones((), device=device)
    first = replace(place, window_shape=shape, sample_ids=starts, sample_dim=sample)
    return _Plan(split, one.expand(shape), one.expand(sizes), place, first)


def draw(
    p: float | Tensor,
    key: Any,
    shape: Sequence[int],
    sample: int,
    unit: int,
    groups: Groups,
    ranks: Ranks,
    device: torch.device,
) -> Mask:
    """The mask of one use of a dropout layer.

    Args:
        p: its rate.
        key: its key, what stands for one, or None to draw one as any dropout does.
        shape: of what is dropped from.
        sample, unit: the dimensions of samples and units; what lies in the others shares its unit's decision.
        groups: how the batch is split.
        ranks: whether processes have sub-networks of their own, or all the same ones.
        device: where.

    Returns:
        For each group the contract's mask of its first sample.
    """
    plan = _plan(tuple(shape), sample, unit, groups, device)
    number, place = ops.resolved("dropout", plan.whole, key, plan.place)
    if number is None:
        number = Key(as_key_number(None)) if device.type == "cpu" else as_key_tensor(None, device)
    first = plan.first
    if ranks == "same":
        first = _shifted(first, _same(key))
    elif place.sample_ids is not None:
        assert first.sample_ids is not None
        first = replace(first, window_shape=place.window_shape, sample_ids=place.sample_ids[first.sample_ids])
    elif place.window_offset is not None:
        first = _shifted(replace(first, window_shape=place.window_shape), place.window_offset[sample])
    keep = ops.dropout(plan.units, number, p, first)
    rate = float(p)
    kept = Kept.of(keep.movedim(sample, 0).reshape(plan.split.groups, shape[unit]))
    return Mask(kept, plan.split, 0.0 if rate == 1 else 1 / (1 - rate))


def _shifted(place: ops.Place, by: int) -> ops.Place:
    assert place.sample_ids is not None
    return replace(place, sample_ids=place.sample_ids + by) if by else place


def _same(key: Any) -> int:
    """How many samples of the step came before, the same number on every process."""
    samples = getattr(key, "samples", None)  # a pinned site has them
    if not isinstance(samples, Samples):
        raise RuntimeError(
            "ranks is 'same', but this process draws keys of its own; expected a model whose keys are the same on all "
            "processes: pin it after batchwise, puredrop.reproducible(model)"
        )
    if samples.ids is not None or samples.base is None:
        raise RuntimeError(
            "ranks is 'same', but masks follow the samples' names, or their number is not known; "
            "pass ranks='own', or name no samples"
        )
    return samples.base
