"""Tensors that are spread over processes (DTensor): each process draws its part of the one mask."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from puredrop._torch import local_part
from puredrop.ops._arguments import Place

__all__ = ["is_spread", "over_shards"]


def is_spread(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing torch.distributed.tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def over_shards(function: Callable[[Tensor, Place], Tensor], input: Any, place: Place) -> Tensor:
    """Apply an operator to this process's part of a tensor, with the window that the tensor's layout gives.

    Args:
        function: operator (local tensor, place) -> a tensor like the local one.
        input: a DTensor; pending sums (Partial placements) are reduced first.
        place: place of the whole tensor.

    Returns:
        A DTensor of the same layout.

    Raises:
        NotImplementedError: for a layout whose parts are no windows (strided shards).
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    placements = [Replicate() if isinstance(placement, Partial) else placement for placement in input.placements]
    if placements != list(input.placements):
        input = input.redistribute(input.device_mesh, placements)
    for placement in placements:
        if type(placement) not in (Replicate, Shard):
            raise NotImplementedError(
                f"input is a DTensor placed {placement}; expected Replicate or Shard, whose parts are windows "
                "(redistribute it first)"
            )
    local = input.to_local()
    sizes, start = local_part(input.shape, input.device_mesh, placements)
    base = place.window_offset or (0,) * input.dim()
    offset = tuple(a + b for a, b in zip(base, start, strict=True))
    ids = place.sample_ids
    if ids is not None:
        d = place.sample_dim
        ids = ids.narrow(0, start[d], sizes[d]) if local.shape[d] else ids[:0]
        offset = (*offset[:d], 0, *offset[d + 1 :])
    part = Place(place.shared_dims, place.window_shape or tuple(input.shape), offset, ids, place.sample_dim)
    output = function(local, part)
    return DTensor.from_local(
        output, input.device_mesh, placements, run_check=False, shape=input.shape, stride=input.stride()
    )
