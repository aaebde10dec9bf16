"""Index lists of the units that each group of samples keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puredrop._backend import library

__all__ = ["Kept"]

_MULTIPLE = 16
"""Panels are padded to a multiple of this width. With 4091 instead of 4096 columns a product takes 1.5 times as long,
because rows no longer begin where the processor's vector loads begin (docs/batchwise.md)."""


@dataclass(frozen=True)
class Kept:
    """The units that each of several groups keeps, in ascending order.

    Args:
        size: number of units before dropout.
        width: columns reserved for a group's units, at least the largest count.
        counts: int32 (groups,), the number of units that each group keeps.
        index: int32 (groups, size); the first `counts[g]` entries of row g are the units that group g keeps, the
            entries after them are meaningless.
        position: int32 (groups, size), each unit's place among the units of its group, -1 where it is dropped.
    """

    size: int
    width: int
    counts: Tensor
    index: Tensor
    position: Tensor

    @staticmethod
    def from_mask(keep: Tensor) -> Kept:
        """Build the lists from a mask.

        Args:
            keep: (groups, size), nonzero where a unit is kept.

        Raises:
            ValueError: if the mask has another number of dimensions, or too many units to number them in int32.
        """
        if keep.dim() != 2 or keep.shape[1] >= 2**31:
            raise ValueError(f"keep has shape {tuple(keep.shape)}; expected (groups, size) with a size below 2^31")
        groups, size = keep.shape
        compiled = library() if keep.is_cpu else None
        if compiled is None:
            is_kept = keep != 0
            position = torch.where(is_kept, is_kept.cumsum(1) - 1, -1)
            index = (~is_kept).to(torch.int8).argsort(dim=1, stable=True)  # dropped units go after the kept ones
            counts, index, position = is_kept.sum(1).int(), index.int(), position.int()
        else:
            if keep.dtype != torch.float32:
                keep = (keep != 0).to(torch.float32)  # a conversion alone would round small numbers to 0
            keep = keep.contiguous()
            shapes = ((groups,), (groups, size), (groups, size))
            counts, index, position = (torch.empty(shape, dtype=torch.int32, device="cpu") for shape in shapes)
            compiled.list(keep.data_ptr(), groups, size, index.data_ptr(), position.data_ptr(), counts.data_ptr())
        return Kept(size, _padded_width(counts), counts, index, position)

    def select(self, first: int, last: int) -> Kept:
        """Return the lists of the groups from `first` up to, not including, `last`, no wider than they need."""
        counts = self.counts[first:last]
        return Kept(self.size, _padded_width(counts), counts, self.index[first:last], self.position[first:last])

    def check(self, name: str, field: str, groups: int, size: int, device: torch.device) -> None:
        """Check that a list is that of so many groups and units, before the library reads it.

        Args:
            name: name of the argument, for the error.
            field: the list that is read with the counts, "index" or "position".
            groups: number of groups.
            size: number of units before dropout.
            device: device of the tensor whose units these are.

        Raises:
            TypeError: if a list is not int32.
            ValueError: if a list has another shape, is not contiguous or is on another device.
        """
        if self.size != size:
            raise ValueError(f"{name} is of {self.size} units; expected {size}, as the matrix has")
        for list_name, values, shape in (
            ("counts", self.counts, (groups,)),
            (field, getattr(self, field), (groups, size)),
        ):
            if values.dtype is not torch.int32:
                raise TypeError(f"{name}.{list_name} has dtype {values.dtype}; expected torch.int32")
            if values.shape != shape or not values.is_contiguous():
                raise ValueError(
                    f"{name}.{list_name} has shape {tuple(values.shape)} and strides {values.stride()}; "
                    f"expected a contiguous tensor of shape {shape}"
                )
            if values.device != device:
                raise ValueError(f"{name}.{list_name} is on device {values.device}; expected {device}")

    def units(self, group: int) -> Tensor:
        """Return the units that a group keeps, int64 (count,)."""
        return self.index[group, : int(self.counts[group])].long()


def _padded_width(counts: Tensor) -> int:
    """Return the width that holds the largest group."""
    most: int = max([1, *counts.tolist()])
    return -(-most // _MULTIPLE) * _MULTIPLE
