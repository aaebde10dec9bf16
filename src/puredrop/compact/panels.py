"""Panels: the parts of a matrix that groups of samples keep, gathered side by side, and scattered back.

Rows are kept units, or samples. A column may hold many elements, such as those of a kernel or a map. The compiled
library serves float32 on the CPU, plain torch serves everything else.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from puredrop._backend import WRONG, library
from puredrop.compact import _reference
from puredrop.compact.kept import Kept

__all__ = ["gather", "scatter", "shape_of"]

_pack = struct.Struct("qQqqqdqQqqQQqQQ").pack


def shape_of(dense: Tensor, groups: int, rows: Kept | int, columns: Kept | None) -> tuple[int, ...]:
    """Return the shape of the panels that `gather` makes of a matrix."""
    height = rows.width if isinstance(rows, Kept) else rows
    return groups, height, columns.width if columns else dense.shape[1], *dense.shape[2:]


def gather(
    dense: Tensor, rows: Kept | int, columns: Kept | None, scale: float, panels: Tensor, step: int = 0
) -> Tensor:
    """Gather the panels of a matrix, scaled and padded with zeros.

    Args:
        dense: (rows, columns, ...), contiguous.
        rows: the rows that each group keeps; as a number n, the n rows from `step * group` on.
        columns: the columns that each group keeps; None for all columns.
        scale: factor for every element.
        panels: (groups, padded rows, padded columns, ...), contiguous; overwritten.
        step: distance between the first rows of two groups, where `rows` is a number.

    Returns:
        `panels`.

    Raises:
        TypeError: if a tensor or list has a wrong dtype.
        ValueError: if sizes do not fit, a tensor is not contiguous, or a list holds a number out of range.
    """
    _check(dense, rows, columns, panels, step)
    if not _compiled(0, dense, rows, columns, scale, panels, step):
        _reference.gather(dense, _lists(rows), columns, scale, step, panels)
    return panels


def scatter(
    panels: Tensor, rows: Kept | int, columns: Kept | None, scale: float, dense: Tensor, step: int = 0
) -> Tensor:
    """Add panels up in their places in a matrix; elements that no panel holds become 0.

    Each element is written to memory once.

    Args:
        panels: (groups, padded rows, padded columns, ...), contiguous.
        rows, columns, step: as for `gather`.
        scale: factor for every sum.
        dense: (rows, columns, ...), contiguous; overwritten.

    Returns:
        `dense`.

    Raises:
        TypeError, ValueError: as `gather`.
    """
    _check(dense, rows, columns, panels, step)
    if not _compiled(1, dense, rows, columns, scale, panels, step):
        _reference.scatter(panels, _lists(rows), columns, scale, step, dense)
    return dense


def _lists(rows: Kept | int) -> Kept | None:
    """Return the lists of rows, None where rows are a number."""
    return rows if isinstance(rows, Kept) else None


def _check(dense: Tensor, rows: Kept | int, columns: Kept | None, panels: Tensor, step: int) -> None:
    """Check that panels fit a matrix, since the library trusts their sizes."""
    if dense.dim() < 2:
        raise ValueError(f"dense has shape {tuple(dense.shape)}; expected rows, columns and perhaps more dimensions")
    groups = panels.shape[0] if panels.dim() else 0
    expected = shape_of(dense, groups, rows, columns)
    if panels.shape != expected:
        raise ValueError(f"panels has shape {tuple(panels.shape)}; expected {expected}, as many groups as you like")
    if panels.dtype != dense.dtype:
        raise TypeError(f"panels has dtype {panels.dtype}; expected the dtype of dense, {dense.dtype}")
    if panels.device != dense.device:
        raise ValueError(f"panels is on device {panels.device}; expected the device of dense, {dense.device}")
    for name, tensor in (("dense", dense), ("panels", panels)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; expected a contiguous tensor (try .contiguous())")
    if isinstance(rows, Kept):
        rows.check("rows", "position", groups, dense.shape[0], dense.device)
    if columns is not None:
        columns.check("columns", "index", groups, dense.shape[1], dense.device)
    if not isinstance(rows, Kept) and (step < 0 or (groups and step * (groups - 1) + rows > dense.shape[0])):
        raise ValueError(
            f"rows is {rows}, step {step}, groups {groups}; expected rows within the {dense.shape[0]} of dense"
        )


def _compiled(
    scatters: int, dense: Tensor, rows: Kept | int, columns: Kept | None, scale: float, panels: Tensor, step: int
) -> bool:
    """Let the compiled library gather or scatter, and return whether it could."""
    compiled = library() if dense.is_cpu and dense.dtype == torch.float32 else None
    if compiled is None:
        return False
    if dense.numel() == 0:
        if not scatters:
            panels.zero_()
        return True
    count, size = dense.shape[:2]
    width = dense.numel() // count
    groups, height, breadth = panels.shape[:3]
    row_at, row_count = _addresses("rows", rows.position, rows.counts) if isinstance(rows, Kept) else (0, 0)
    column, column_count = _addresses("columns", columns.index, columns.counts) if columns else (0, 0)
    dense_at, panels_at = _addresses("dense or panels", dense, panels)
    call = _pack(
        *(scatters, dense_at, count, width, width // size, scale, groups, panels_at, height, breadth),
        *(row_at, row_count, step, column, column_count),
    )
    status = compiled.panels(call)
    if status == WRONG:
        raise ValueError(
            "rows or columns: a list of kept units holds a number out of range; expected lists as Kept.from_mask "
            "returns them, unchanged"
        )
    if status:
        raise RuntimeError(f"puredrop: torch's thread pool failed with status {status}; set PUREDROP_BACKEND=reference")
    return True


def _addresses(name: str, first: Tensor, second: Tensor) -> tuple[int, int]:
    """Return the addresses that the library reads two tensors from, both not empty unless there are no groups."""
    addresses = first.data_ptr(), second.data_ptr()
    if not all(addresses) and first.numel() and second.numel():
        raise ValueError(f"{name} has no memory, as after its storage was resized to 0; expected a tensor that has")
    return addresses
