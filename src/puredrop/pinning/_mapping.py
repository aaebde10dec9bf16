"""Dimensions that torch.func.vmap hides from a model: those that hold samples, and those that hold copies of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Module

from puredrop._torch import transforms_active
from puredrop._torch_transforms import mapped_levels
from puredrop.inspection.tensors import tensors_in
from puredrop.ops import Place

__all__ = ["Slices", "check_opened", "check_site", "slices_of"]


class Slices(NamedTuple):
    """Levels of vmap around a forward, by what they map.

    Args:
        sizes: level -> number of slices, for levels that map samples, outermost first.
        known: all levels at which inputs, parameters or ids are mapped.
    """

    sizes: dict[int, int]
    known: frozenset[int]

    @property
    def total(self) -> int:
        """Return the number of slices, each of which belongs to one sample."""
        return math.prod(self.sizes.values())


def slices_of(root: Module, args: Iterable[Any], kwargs: Mapping[str, Any], ids: Tensor | None) -> Slices | None:
    """Return the levels of vmap around a forward that begins; None outside of transforms of torch.func.

    A level at which inputs are mapped and parameters are not maps samples. One at which parameters are mapped and
    inputs are not maps copies of the model, which all have the masks of the model alone. Ids that are mapped themselves
    say which samples a slice has, whatever else is mapped there.

    Raises:
        ValueError: for a level at which inputs and parameters are mapped, and the ids are not.
    """
    if not transforms_active():
        return None
    inputs = _levels([*args, *kwargs.values()])
    copies = _levels([*root.parameters(), *root.buffers()])
    given = {} if ids is None else mapped_levels(ids)
    both = inputs.keys() & copies.keys() - given.keys()
    if both:
        raise ValueError(
            f"vmap maps the pinned model's inputs and its parameters together, over {inputs[min(both)]} slices, which "
            "may be samples or copies of the model with data of their own; say which samples a slice has: map the ids "
            "too, and set run.sample_ids to a slice's ids in the mapped function"
        )
    sizes = {level: inputs[level] for level in sorted(inputs.keys() - copies.keys() - given.keys())}
    return Slices(sizes, frozenset((*inputs, *copies, *given)))


def _levels(values: Iterable[Any]) -> dict[int, int]:
    """Return the levels at which any of the tensors in nested containers is mapped."""
    sizes: dict[int, int] = {}
    for tensor in tensors_in(list(values)):
        sizes.update(mapped_levels(tensor))
    return sizes


def check_opened(slices: Slices | None, outer: Slices | None) -> None:
    """Check that a call of a model in an open forward is mapped as the forward is.

    Raises:
        RuntimeError: if vmap maps other inputs than those that the forward began with.
    """
    if slices is not None and slices.sizes and (outer is None or outer.sizes != slices.sizes):
        raise RuntimeError(
            "vmap maps the inputs of the pinned model within a forward that was opened outside of it, so the samples "
            "that were counted are not those of a slice; open no forward by hand around vmap, and call the model itself"
        )


def check_site(
    path: str, dim: int | None, input: Tensor, place: Place, slices: Slices | None, count: int | None
) -> None:
    """Check that a site's tensor is mapped as the forward's inputs and parameters are.

    Args:
        path: path of the site.
        dim: dimension of the samples in its tensor; None for a tensor that belongs to no sample.
        input: the tensor.
        place: its place as the caller knows it.
        slices: levels of vmap around the forward, None if it began outside of transforms of torch.func.
        count: number of samples in a slice.

    Raises:
        ValueError: if the tensor is mapped at another level, or a slice of it has no dimension for the samples.
    """
    slices = slices or Slices({}, frozenset())
    unknown = mapped_levels(input).keys() - slices.known
    if unknown:
        raise ValueError(
            f"site {path!r} drops from a tensor that vmap maps, but neither the model's inputs nor its parameters are "
            "mapped there, so it is unknown whether the slices are samples; hand the mapped tensor to the model as an "
            "argument, or set run.sample_ids to a slice's ids in the mapped function"
        )
    if not slices.sizes or dim in (None, 0) or dim in place.shared_dims or place.sample_ids is not None:
        return
    assert dim is not None
    if dim > 0 and (dim >= input.dim() or input.shape[dim] != count):
        raise ValueError(
            f"site {path!r} has its samples in dimension {dim}, where a slice that vmap maps has shape "
            f"{tuple(input.shape)}; keep a dimension of size 1 for the sample there: model(x.unsqueeze({dim}))"
        )
