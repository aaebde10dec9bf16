"""Masks that groups of samples share: the contract's, each group having its first sample's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from puredrop import ops
from puredrop.compact.kept import Kept
from puredrop.pinning import Samples
from puredrop.rng import Key, as_key_number, as_key_tensor
from puredrop.thinning.groups import Groups, GroupSplit

__all__ = ["Mask", "Ranks", "GroupSite", "draw", "masked"]

Ranks = Literal["own", "same"]


class Mask(NamedTuple):
    """One use's mask: what each group of samples keeps.

    Args:
        kept: the units.
        split: how the batch is in groups.
        scale: 1/(1-p); 0 where all are dropped for sure.
    """

    kept: Kept
    split: GroupSplit
    scale: float


class GroupSite(NamedTuple):
    """A dropout layer, as its masks need to know it.

    Args:
        p: its rate.
        key: its key, what stands for one, or None to draw one as any dropout does.
        sample, unit: the dimensions of samples and units, not negative; what lies in the others shares its unit's
            decision.
        groups: how batches are split.
        ranks: whether processes have sub-networks of their own, or all the same ones.
    """

    p: float | Tensor
    key: Any
    sample: int
    unit: int
    groups: Groups
    ranks: Ranks

    def split(self, shape: Sequence[int]) -> GroupSplit:
        """The groups of what is dropped from."""
        return self.groups.of(shape[self.sample], torch.Size(shape).numel() // max(1, shape[self.unit]))

    def place(self, shape: Sequence[int]) -> ops.Place:
        """Of what is dropped from, as far as its shape tells."""
        return ops.Place(tuple(d for d in range(len(shape)) if d not in (self.sample, self.unit)))


class _Plan(NamedTuple):
    """What all masks of a shape have in common.

    Args:
        split: how the batch is in groups.
        starts: int64 (groups,): each group's first sample.
        whole: a tensor of the shape, without memory.
        units: one element for each unit of each group.
    """

    split: GroupSplit
    starts: Tensor
    whole: Tensor
    units: Tensor


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], sample: int, unit: int, split: GroupSplit, device: torch.device) -> _Plan:
    """Of which a model has few; making one takes as long as its mask."""
    sizes = [1] * len(shape)
    sizes[sample], sizes[unit] = split.groups, shape[unit]
    with torch.inference_mode(False):
        one = torch.ones((), device=device)
        return _Plan(split, torch.tensor(split.starts, device=device), one.expand(shape), one.expand(sizes))


def draw(site: GroupSite, shape: Sequence[int], device: torch.device) -> Mask:
    """The mask of one use of a dropout layer.

    Args:
        site: the layer.
        shape: of what is dropped from.
        device: where.

    Returns:
        For each group the contract's mask of its first sample.
    """
    split = site.split(shape)
    plan = _plan(tuple(shape), site.sample, site.unit, split, device)
    key, place = _first(site, plan.whole, plan.starts)
    if key is None:
        key = Key(as_key_number(None)) if device.type == "cpu" else as_key_tensor(None, device)
    keep = ops.dropout(plan.units, key, site.p, place)
    rate = float(site.p)
    kept = Kept.of(keep.movedim(site.sample, 0).reshape(split.groups, shape[site.unit]))
    return Mask(kept, split, 0.0 if rate == 1 else 1 / (1 - rate))


def masked(site: GroupSite, input: Tensor) -> Tensor:
    """Dropout with the same masks on the whole tensor, in plain operators: what compacted layers must equal.

    Args:
        site: the layer.
        input: what is dropped from.
    """
    split = site.split(input.shape)
    starts = [split.starts[group] for group in split.group_of]
    key, place = _first(site, input, torch.tensor(starts, device=input.device))
    return ops.dropout(input, key, site.p, place)


def _first(site: GroupSite, input: Tensor, starts: Tensor) -> tuple[Any, ops.Place]:
    """A use's key, None for one to be drawn, and the place in which samples have the names of their groups' first.

    Args:
        site: the layer.
        input: what is dropped from.
        starts: first samples, as counted in this batch.
    """
    key, place = ops.resolve_key("dropout", input, site.key, site.place(input.shape))
    window = place.window_shape or tuple(input.shape)
    if site.ranks == "same":
        starts, window = starts + _before(site.key), tuple(input.shape)
    elif place.sample_ids is not None:
        starts = place.sample_ids[starts]
    elif place.window_offset is not None:
        starts = starts + place.window_offset[site.sample]
    return key, ops.Place(place.shared_dims, window, None, starts, site.sample)


def _before(key: Any) -> int:
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
