"""Which units each group of samples keeps: the index lists that everything compacted is made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puredrop._backend import library

__all__ = ["Kept"]

_MULTIPLE = 16
"""Panels are filled up to a multiple of this: 4091 columns in place of 4096 make a product 1.5 times slower, since rows
no longer begin at a boundary of what the processor reads at once (docs/batchwise.md)."""


@dataclass(frozen=True)
class Kept:
    """The units that each of several groups keeps, in ascending order.

    Args:
        size: how many units there are.
        width: room for the units of any group.
        counts: int32 (groups,): how many each group keeps.
        index: int32 (groups, size): the units that a group keeps stand first in its row; what follows means nothing.
        at: int32 (groups, size): where each unit stands among those of its group, -1 if it is dropped.
    """

    size: int
    width: int
    counts: Tensor
    index: Tensor
    at: Tensor

    @staticmethod
    def of(keep: Tensor) -> Kept:
        """The lists of a mask.

        Args:
            keep: (groups, size), not 0 where a unit is kept.
        """
        groups, size = keep.shape
        compiled = library() if keep.is_cpu else None
        if compiled is None:
            kept = keep != 0
            at = torch.where(kept, kept.cumsum(1) - 1, -1)
            index = (~kept).to(torch.int8).argsort(dim=1, stable=True)  # what is dropped goes behind what is kept
            counts, index, at = kept.sum(1).int(), index.int(), at.int()
        else:
            keep = keep.to(torch.float32).contiguous()
            counts, index, at = (torch.empty(s, dtype=torch.int32) for s in (groups, (groups, size), (groups, size)))
            compiled.list(keep.data_ptr(), groups, size, index.data_ptr(), at.data_ptr(), counts.data_ptr())
        return Kept(size, _room(counts), counts, index, at)

    def some(self, first: int, last: int) -> Kept:
        """Of some of the groups, with no more room than these need."""
        counts = self.counts[first:last]
        return Kept(self.size, _room(counts), counts, self.index[first:last], self.at[first:last])

    def units(self, group: int) -> Tensor:
        """int64 (count,): what a group keeps."""
        return self.index[group, : int(self.counts[group])].long()


def _room(counts: Tensor) -> int:
    """For the most units that a group keeps."""
    most: int = max([1, *counts.tolist()])
    return -(-most // _MULTIPLE) * _MULTIPLE
