"""Judgement where a site's samples lie, from two forwards with different numbers of samples."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from puredrop.inspection.axes import Axis
from puredrop.ops import PACKED
from puredrop.pinning._samples import Layout

__all__ = ["Placement", "ObservedUse", "judge", "refusal"]

Status = Literal["shown", "given", "assumed", "refused", "not reached"]


class ObservedUse(NamedTuple):
    """A use of a site in a forward.

    Args:
        shape: sizes of the tensor.
        samples: number of samples in the forward.
        shared_dims: dimensions over which elements share one decision.
        is_placed: whether the caller gave window or ids.
        axis: where the samples lie, as the operators before show; None if they do not.
    """

    shape: tuple[int, ...]
    samples: int
    shared_dims: tuple[int, ...] = ()
    is_placed: bool = False
    axis: Axis | None = None


class Placement(NamedTuple):
    """Judgement on where a site's samples lie.

    Args:
        status: "shown" by forwards; "given" by the user; "assumed"; "refused" where the samples lie elsewhere.
        reason: what shows it, or why it is refused or only assumed, with the likely fix.
    """

    status: Status
    reason: str = ""


def judge(layout: Layout, is_given: bool, first: ObservedUse, second: ObservedUse) -> Placement:
    """Judge a site's sample dimension.

    Args:
        layout: path and sample dimension of the site.
        is_given: whether the user gave the dimension.
        first, second: uses in two forwards with different numbers of samples.
    """
    dim, path = layout.sample_dim, layout.path
    if first.is_placed or layout.window is not None:
        return Placement("given", "window")
    if dim == PACKED:
        return Placement("refused", "the rows of a packed sequence are no samples; use padded sequences (batch_first)")
    free = _growing(first, second)
    if free == []:
        if dim is None or dim in first.shared_dims:
            return Placement("shown", "all samples share the mask")
        return Placement("refused", f"the tensor belongs to no sample: {_fix(path, None)}")
    if free is None or len(free) > 1 or not _follows(first, second, free[0]):
        if is_given and dim is None:
            return Placement("given", "all samples share the mask")
        sizes = f"{first.shape} for {first.samples} samples, {second.shape} for {second.samples}"
        return Placement(
            "refused", f"the sizes do not follow the number of samples ({sizes}); {_fix(path, None)} drops by position"
        )
    axes = {use.axis for use in (first, second) if use.axis is not None and use.axis.dim == free[0]}
    return _located(layout, free[0], axes.pop() if len(axes) == 1 else None)


def _located(layout: Layout, dim: int, axis: Axis | None) -> Placement:
    """Judge a site whose samples lie in a known dimension, in a known or unknown order."""
    if dim != layout.sample_dim:
        size = "" if dim == 0 else ", and run.batch_size"
        return Placement("refused", f"dimension {dim} holds the samples: {_fix(layout.path, dim)}{size}")
    if axis is None:
        return Placement("assumed", f"the order of the samples in dimension {dim} is unknown")
    if axis.outer > 1:
        return Placement(
            "refused",
            f"dimension {dim} holds samples within {axis.outer} groups, such as heads that come first, which "
            "sample_dims= cannot say; put the samples first: x.transpose(0, 1).flatten(0, 1)",
        )
    return Placement("shown", f"dimension {dim}" + (f", {axis.inner} indices each" if axis.inner > 1 else ""))


def _growing(first: ObservedUse, second: ObservedUse) -> list[int] | None:
    """Return the dimensions with decisions of their own that the number of samples changes; None for other ranks."""
    if len(first.shape) != len(second.shape):
        return None
    pairs = enumerate(zip(first.shape, second.shape, strict=True))
    return [dim for dim, (a, b) in pairs if a != b and dim not in first.shared_dims]


def _follows(first: ObservedUse, second: ObservedUse, dim: int) -> bool:
    """Return whether a dimension holds equally many indices for each sample."""
    each, remainder = divmod(first.shape[dim], first.samples)
    return not remainder and each > 0 and second.shape[dim] == each * second.samples


def _fix(path: str, dim: int | None) -> str:
    return f"reproducible(..., sample_dims={{{path!r}: {dim}}})"


def refusal(path: str, shape: Any, count: int | None, dim: int | None, reason: str) -> str:
    """Return the error for a site whose samples lie elsewhere.

    Args:
        path: path of the site.
        shape: sizes of its tensor.
        count: number of samples in the forward.
        dim: dimension in which they were taken to lie.
        reason: what shows that they do not, and the fix.
    """
    where = "in no dimension" if dim is None else f"in dimension {dim}"
    return f"site {path!r} drops from {tuple(shape)}, which does not hold {count} samples {where}; {reason}"
