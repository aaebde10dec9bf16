"""Masks that groups of samples share: each group has the contract's mask of its first sample."""

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

__all__ = ["GroupMask", "Ranks", "GroupSite", "draw", "masked"]

Ranks = Literal["own", "same"]


class GroupMask(NamedTuple):
    """Mask of one use of a dropout layer.

    Args:
        kept: the units that each group keeps.
        split: split of the batch into groups.
        scale: 1/(1-p); 0 for p = 1.
    """

    kept: Kept
    split: GroupSplit
    scale: float


class GroupSite(NamedTuple):
    """Properties of a dropout layer that determine its masks.

    Args:
        p: drop probability in [0, 1].
        key: a `Key`, a key source, or None to draw a key from torch's generator.
        sample, unit: dimensions of samples and units, not negative; elements along the other dimensions share the
            decision of their unit.
        groups: rule by which batches are split.
        ranks: whether every process has sub-networks of its own, or all processes have the same.
    """

    p: float | Tensor
    key: Any
    sample: int
    unit: int
    groups: Groups
    ranks: Ranks

    def split(self, shape: Sequence[int]) -> GroupSplit:
        """Split a tensor of this shape into groups."""
        return self.groups.split(shape[self.sample], torch.Size(shape).numel() // max(1, shape[self.unit]))

    def place(self, shape: Sequence[int]) -> ops.Place:
        """Return the place of a tensor of this shape, without window and sample ids."""
        return ops.Place(tuple(d for d in range(len(shape)) if d not in (self.sample, self.unit)))


class _ShapePlan(NamedTuple):
    """Tensors that all masks of one shape share.

    Args:
        split: split of the batch into groups.
        starts: int64 (groups,), each group's first sample.
        whole: a tensor of the full shape that takes no memory.
        units: a tensor with one element for each unit of each group.
    """

    split: GroupSplit
    starts: Tensor
    whole: Tensor
    units: Tensor


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], sample: int, unit: int, split: GroupSplit, device: torch.device) -> _ShapePlan:
    """Return the plan of a shape; cached, because making one takes as long as drawing a mask."""
    sizes = [1] * len(shape)
    sizes[sample], sizes[unit] = split.groups, shape[unit]
    with torch.inference_mode(False):
        one = torch.ones((), device=device)
        return _ShapePlan(split, torch.tensor(split.starts, device=device), one.expand(shape), one.expand(sizes))


def draw(site: GroupSite, shape: Sequence[int], device: torch.device) -> GroupMask:
    """Draw the mask of one use of a dropout layer.

    Args:
        site: the layer.
        shape: shape of the tensor to drop from.
        device: device of the mask.

    Returns:
        For each group the contract's mask of its first sample.
    """
    split = site.split(shape)
    plan = _plan(tuple(shape), site.sample, site.unit, split, device)
    key, place = _key_and_place(site, plan.whole, plan.starts)
    if key is None:
        key = Key(as_key_number(None)) if device.type == "cpu" else as_key_tensor(None, device)
    keep = ops.dropout(plan.units, key, site.p, place)
    rate = float(site.p)
    kept = Kept.from_mask(keep.movedim(site.sample, 0).reshape(split.groups, shape[site.unit]))
    return GroupMask(kept, split, 0.0 if rate == 1 else 1 / (1 - rate))


def masked(site: GroupSite, input: Tensor) -> Tensor:
    """Drop from the whole tensor with the same masks, in plain operators; compacted layers must equal this.

    Args:
        site: the layer.
        input: tensor to drop from.
    """
    split = site.split(input.shape)
    starts = [split.starts[group] for group in split.group_of]
    key, place = _key_and_place(site, input, torch.tensor(starts, device=input.device))
    return ops.dropout(input, key, site.p, place)


def _key_and_place(site: GroupSite, input: Tensor, starts: Tensor) -> tuple[Any, ops.Place]:
    """Return a use's key, None for one to be drawn, and the place where samples have the ids of their groups' first.

    Args:
        site: the layer.
        input: tensor to drop from.
        starts: int64 first samples, counted in this batch.
    """
    key, place = ops.resolve_key("dropout", input, site.key, site.place(input.shape))
    window = place.window_shape or tuple(input.shape)
    if site.ranks == "same":
        starts, window = starts + _earlier_samples(site.key), tuple(input.shape)
    elif place.sample_ids is not None:
        starts = place.sample_ids[starts]
    elif place.window_offset is not None:
        starts = starts + place.window_offset[site.sample]
    return key, ops.Place(place.shared_dims, window, None, starts, site.sample)


def _earlier_samples(key: Any) -> int:
    """Return how many samples of the step earlier forwards had, the same number on every process."""
    samples = getattr(key, "samples", None)  # only a pinned site has this attribute
    if not isinstance(samples, Samples):
        raise RuntimeError(
            "ranks is 'same', but this process draws keys of its own; expected a model whose keys are the same on all "
            "processes: pin it after batchwise, puredrop.reproducible(model)"
        )
    if samples.ids is not None or samples.base is None:
        raise RuntimeError(
            "ranks is 'same', but masks follow run.sample_ids, or the number of samples is unknown; "
            "pass ranks='own', or set no run.sample_ids"
        )
    return samples.base
