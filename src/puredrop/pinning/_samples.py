"""Which samples a forward is given, and so where a tensor lies in that of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from puredrop.ops import PACKED, Place, Window, is_spread

__all__ = ["FIRST", "Layout", "Samples", "count_of", "placed"]

Windows = Mapping[str, "Window | Callable[[Tensor], Window] | None"]


@dataclass(frozen=True)
class Samples:
    """What is known of a forward's samples.

    Args:
        are_whole: whether they are the first of their step, counted, so that places need no change.
        count: how many this process has in it; None where its inputs do not say.
        offset: how many of the step stand before the first of them, on all processes and in earlier forwards; None
            where an earlier forward did not say how many it had.
        ids: their names, int64 (count,), or None.
        base: how many of the step came in earlier forwards, and
        total: how many there are in this one, on all processes; for tensors that are spread over the processes.
        batch_size: how many there are in the whole step, where the user said so.
        places: ids, or offset and the numbers after it, (count,): what compiled code reads, for which another number
            would be another program, but another tensor is not.
        known: places that were found, by shape and sample dimension: sites of one shape share them.
    """

    are_whole: bool = True
    count: int | None = None
    offset: int | None = 0
    ids: Tensor | None = None
    base: int | None = 0
    total: int | None = None
    batch_size: int | None = None
    places: Tensor | None = None
    known: dict[Any, Place] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(count: int | None, offset: int | None, ids: Tensor | None, **rest: Any) -> Samples:
        """Samples, and what follows from them."""
        if offset == 0 and ids is None and rest["batch_size"] is None:
            return Samples(True, count, **rest)
        places = ids
        if places is None and count is not None and offset is not None:
            places = torch.arange(offset, offset + count)
        return Samples(False, count, offset, ids, places=places, **rest)


FIRST = Samples()


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in what a site drops from, and what else is known of it.

    Args:
        path: the site's.
        sample_dim: the dimension of the samples; None for what belongs to no sample, such as a weight.
        window: the logical tensor beyond its samples, or what says it of a tensor.
    """

    path: str
    sample_dim: int | None
    window: Window | Callable[[Tensor], Window] | None = None


def count_of(dim: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int | None, bool]:
    """How many samples a forward's arguments hold, by the first tensor that has the dimension; whether it is spread."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.dim() > dim:
                return value.shape[dim], is_spread(value)
        elif isinstance(value, (tuple, list)):
            found = count_of(dim, value, {})
            if found[0] is not None:
                return found
        elif isinstance(value, Mapping):
            found = count_of(dim, (), value)
            if found[0] is not None:
                return found
    return None, False


def placed(input: Tensor, place: Place, samples: Samples, layout: Layout) -> Place:
    """As `_placed`, which sites of one shape need ask but once in a forward."""
    if layout.window is not None or not place.is_whole or torch.compiler.is_compiling() or is_spread(input):
        return _placed(input, place, samples, layout)
    what = (input.shape, layout.sample_dim)
    found = samples.known.get(what)
    if found is None:
        found = samples.known[what] = _placed(input, place, samples, layout)
    return found


def _placed(input: Tensor, place: Place, samples: Samples, layout: Layout) -> Place:
    """A call's place in the logical tensor of the whole step.

    Args:
        input: what is dropped from.
        place: as the caller knows it; one that says where it lies, or names samples, is left as it is.
        samples: of this forward.
        layout: of this site.

    Raises:
        ValueError: where the samples' places cannot be told; the message says what to give.
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
    samples = _of(input, samples, layout)
    ids = samples.ids
    if torch.compiler.is_compiling() and samples.places is not None:
        ids = samples.places
        each = _each(shape, ids.shape[0], layout)
    else:
        each = _each(shape, None if ids is None and samples.offset is None else samples.count, layout)
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


def _of(input: Any, samples: Samples, layout: Layout) -> Samples:
    """The samples in a tensor; one spread over the processes along its samples holds those of all of them."""
    if not is_spread(input) or samples.total in (None, samples.count):
        return samples
    if not any(one.is_shard(layout.sample_dim) for one in input.placements):
        return samples
    if samples.ids is not None:
        raise ValueError(
            f"site {layout.path!r} drops from a DTensor that holds all processes' samples, sample_ids name this "
            "process's; call the model on DTensors and give the ids of all samples, or none"
        )
    return replace(samples, count=samples.total, offset=samples.base, places=None)


def _each(shape: tuple[int, ...], count: int | None, layout: Layout) -> int:
    """How many indices along the sample dimension belong to one sample: heads or windows may lie there with it."""
    dim, path = layout.sample_dim, layout.path
    if dim == PACKED:
        raise ValueError(
            f"site {path!r} drops from a packed sequence, whose rows are no samples; masks of packed sequences are "
            "pinned for one forward per step on one process only: give it padded sequences (batch_first)"
        )
    assert dim is not None
    if count is None:
        raise ValueError(
            f"site {path!r}: no tensor among the model's arguments says how many samples this forward of the step, or "
            "one before, is given; open each by hand, `with run.forward(batch_size=...)`"
        )
    if dim >= len(shape) or count == 0 or shape[dim] % count:
        raise ValueError(
            f"site {path!r} drops from {shape}, which does not hold {count} samples in dimension {dim}; say "
            f"where they are: reproducible(..., sample_dims={{{path!r}: 1}}), or None for what belongs to no sample"
        )
    return shape[dim] // count
