"""Panels: the parts of a matrix that groups of samples keep, gathered side by side, and scattered back.

The core of whatever runs thinned networks. Rows are units that are kept, or samples; a column may be many elements, a
kernel's or a map's. The compiled library serves float32 on the CPU, plain torch everything else.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from puredrop._backend import library
from puredrop.compact import _reference
from puredrop.compact.kept import Kept

__all__ = ["gather", "scatter", "shape_of"]

_pack = struct.Struct("qQqqqdqQqqQQqQQ").pack


def shape_of(dense: Tensor, groups: int, rows: Kept | int, columns: Kept | None) -> tuple[int, ...]:
    """Of the panels of a matrix, as `gather` makes them."""
    height = rows.width if isinstance(rows, Kept) else rows
    return groups, height, columns.width if columns else dense.shape[1], *dense.shape[2:]


def gather(
    dense: Tensor, rows: Kept | int, columns: Kept | None, scale: float, panels: Tensor, step: int = 0
) -> Tensor:
    """The panels of a matrix, scaled, filled up with zeros.

    Args:
        dense: (rows, columns, ...), contiguous.
        rows: which each group has; a number, so many from `step` times the group's own number on.
        columns: which each group has; None for all.
        scale: what the panels are multiplied by.
        panels: (groups, room for rows, room for columns, ...), contiguous, to be written.
        step: see rows.

    Returns:
        The panels.
    """
    if not _compiled(0, dense, rows, columns, scale, panels, step):
        _reference.gather(dense, _kept(rows), columns, scale, step, panels)
    return panels


def scatter(
    panels: Tensor, rows: Kept | int, columns: Kept | None, scale: float, dense: Tensor, step: int = 0
) -> Tensor:
    """The sum of panels in their places, scaled; 0 where none reaches. Each element is written to memory once.

    Args:
        panels: (groups, room for rows, room for columns, ...), contiguous.
        rows, columns, step: as for `gather`.
        scale: what the sum is multiplied by.
        dense: (rows, columns, ...), contiguous, to be written.

    Returns:
        The dense matrix.
    """
    if not _compiled(1, dense, rows, columns, scale, panels, step):
        _reference.scatter(panels, _kept(rows), columns, scale, step, dense)
    return dense


def _kept(rows: Kept | int) -> Kept | None:
    return rows if isinstance(rows, Kept) else None


def _compiled(
    scatters: int, dense: Tensor, rows: Kept | int, columns: Kept | None, scale: float, panels: Tensor, step: int
) -> bool:
    """Have the library do it; whether it can."""
    compiled = library() if dense.is_cpu and dense.dtype == torch.float32 else None
    if compiled is None:
        return False
    if dense.numel() == 0:
        panels.zero_()
        return True
    count, size = dense.shape[:2]
    width = dense.numel() // count
    groups, height, breadth = panels.shape[:3]
    row_at, row_count = _addresses(rows.at, rows.counts) if isinstance(rows, Kept) else (0, 0)
    column, column_count = _addresses(columns.index, columns.counts) if columns else (0, 0)
    call = _pack(
        *(scatters, dense.data_ptr(), count, width, width // size, scale, groups, panels.data_ptr(), height, breadth),
        *(row_at, row_count, step, column, column_count),
    )
    status = compiled.panels(call)
    if status:
        raise RuntimeError(f"puredrop: torch's thread pool failed with status {status}; set PUREDROP_BACKEND=reference")
    return True


def _addresses(lists: Tensor, counts: Tensor) -> tuple[int, int]:
    return lists.data_ptr(), counts.data_ptr()
