"""Samples of a forward, and the place of its tensors among those of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from puredrop._torch import transforms_active
from puredrop.ops import PACKED, Place, Window, is_spread

__all__ = ["FIRST", "Layout", "Samples", "count_of", "placed"]

Windows = Mapping[str, "Window | Callable[[Tensor], Window] | None"]


@dataclass(frozen=True)
class Samples:
    """Samples of one forward.

    Args:
        are_whole: whether they are the first ones of their step, without ids, so that places need no change.
        count: number of samples on this process; None if the inputs do not say.
        offset: number of samples of the step before the first of these, on all processes and in earlier forwards; None
            if an earlier forward did not say how many it had.
        ids: int64 (count,) ids of the samples, or None.
        base: number of samples of the step in earlier forwards, on all processes.
        total: number of samples of this forward on all processes; for tensors that are spread over the processes.
        batch_size: number of samples of the whole step, if the user gave it.
        places: int64 (count,), the ids, or offset, offset + 1, ...; compiled code reads this tensor, because a new
            number would mean a new program and a new tensor does not.
        slices: number of slices that torch.func.vmap maps, each with `count` samples of its own.
        cached_places: places by shape and sample dimension, shared by all sites of one shape.
    """

    are_whole: bool = True
    count: int | None = None
    offset: int | None = 0
    ids: Tensor | None = None
    base: int | None = 0
    total: int | None = None
    batch_size: int | None = None
    places: Tensor | None = None
    slices: int = 1
    cached_places: dict[Any, Place] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(count: int | None, offset: int | None, ids: Tensor | None, **fields: Any) -> Samples:
        """Return samples with the fields that follow from the others."""
        if offset == 0 and ids is None and fields["batch_size"] is None:
            return Samples(True, count, **fields)
        places = ids
        if places is None and count is not None and offset is not None:
            places = torch.arange(offset, offset + count, device="cpu")
        return Samples(False, count, offset, ids, places=places, **fields)


FIRST = Samples()


@dataclass(frozen=True)
class Layout:
    """Layout of a site's tensor.

    Args:
        path: path of the site.
        sample_dim: dimension of the samples; None for a tensor that belongs to no sample, such as a weight.
        window: the logical tensor of which the site sees a part, or a function from the tensor to it.
    """

    path: str
    sample_dim: int | None
    window: Window | Callable[[Tensor], Window] | None = None


def count_of(dim: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int | None, bool]:
    """Return the size of a dimension in the first argument that has it, and whether that is a DTensor."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.dim() > dim:
                # A nested tensor has no shape, but its samples lie first.
                return value.size(0) if value.is_nested else value.shape[dim], is_spread(value)
        elif isinstance(value, (tuple, list)):
            result = count_of(dim, value, {})
            if result[0] is not None:
                return result
        elif isinstance(value, Mapping):
            result = count_of(dim, (), value)
            if result[0] is not None:
                return result
    return None, False


def placed(input: Tensor, place: Place, samples: Samples, layout: Layout) -> Place:
    """Return a call's place in the whole step; cached, since sites of one shape share it within a forward."""
    if layout.window is not None or not place.is_whole or torch.compiler.is_compiling() or is_spread(input):
        return _placed(input, place, samples, layout)
    shape = (input.shape, layout.sample_dim)
    result = samples.cached_places.get(shape)
    if result is None:
        result = _placed(input, place, samples, layout)
        if not transforms_active():  # a place that a transform of torch.func has seen is of no use after it
            samples.cached_places[shape] = result
    return result


def _placed(input: Tensor, place: Place, samples: Samples, layout: Layout) -> Place:
    """Return a call's place in the logical tensor of the whole step.

    Args:
        input: tensor to drop from.
        place: place as the caller knows it; returned unchanged if it has a window or sample ids.
        samples: samples of this forward.
        layout: layout of this site.

    Raises:
        ValueError: if the samples' places are unknown; the message says what to give.
    """
    if place.window_shape is not None or place.sample_ids is not None:
        return place
    dim = layout.sample_dim
    if dim is None or dim in place.shared_dims:
        samples = FIRST
    window = layout.window
    if samples.are_whole and window is None:
        return place
    shape = tuple(input.shape)
    if window is None:
        sizes, offset = list(shape), [0] * len(shape)
    else:
        window = window if isinstance(window, Window) else window(input)
        if len(window.shape) != len(shape):
            raise ValueError(
                f"windows[{layout.path!r}] has {len(window.shape)} dimensions, the site's tensor has shape {shape}"
            )
        sizes, offset = list(window.shape), list(window.offset)
    if samples.are_whole or dim is None:
        return replace(place, window_shape=tuple(sizes), window_offset=tuple(offset))
    samples = _samples_in(input, samples, layout)
    ids = samples.ids
    if torch.compiler.is_compiling() and samples.places is not None:
        ids = samples.places
        each = _indices_per_sample(shape, ids.shape[0], layout)
    else:
        each = _indices_per_sample(shape, None if ids is None and samples.offset is None else samples.count, layout)
    if ids is None:
        assert samples.offset is not None
        offset[dim] += each * samples.offset
        sizes[dim] = max(sizes[dim], offset[dim] + shape[dim])
    elif each != 1:
        ids = (ids[:, None] * each + torch.arange(each, device=ids.device)).flatten()
    if samples.batch_size is not None:
        sizes[dim] = each * samples.batch_size
    elif any(size != 1 and d not in place.shared_dims for d, size in enumerate(sizes[:dim])):
        raise ValueError(
            f"site {layout.path!r} has its samples in dimension {dim} of {shape}, where the mask depends on how many "
            "samples the whole step has; set run.batch_size to that number (or put samples first)"
        )
    return Place(place.shared_dims, tuple(sizes), tuple(offset), None if ids is None else ids.to(input.device), dim)


def _samples_in(input: Any, samples: Samples, layout: Layout) -> Samples:
    """Return the samples in a tensor; a DTensor sharded along its samples holds those of all processes."""
    if not is_spread(input) or samples.total in (None, samples.count):
        return samples
    if not any(placement.is_shard(layout.sample_dim) for placement in input.placements):
        return samples
    if samples.ids is not None:
        raise ValueError(
            f"site {layout.path!r} drops from a DTensor that holds the samples of all processes, but sample_ids "
            "those of this process; call the model on DTensors and give the ids of all samples, or none"
        )
    return replace(samples, count=samples.total, offset=samples.base, places=None)


def _indices_per_sample(shape: tuple[int, ...], count: int | None, layout: Layout) -> int:
    """Return the number of indices along the sample dimension that belong to one sample, such as its heads."""
    dim, path = layout.sample_dim, layout.path
    if dim == PACKED:
        raise ValueError(
            f"site {path!r} drops from a packed sequence, whose rows are no samples; masks of packed sequences are "
            "pinned only for one forward per step on one process; use padded sequences (batch_first)"
        )
    assert dim is not None
    if count is None:
        raise ValueError(
            f"site {path!r}: no tensor among the model's arguments says how many samples this forward of the step, or "
            "one before, has; open each forward by hand: `with run.forward(batch_size=...)`"
        )
    if dim >= len(shape) or count == 0 or shape[dim] % count:
        raise ValueError(
            f"site {path!r} drops from {shape}, which does not hold {count} samples in dimension {dim}; say "
            f"where they are: reproducible(..., sample_dims={{{path!r}: 1}}), or None for what belongs to no sample"
        )
    return shape[dim] // count
