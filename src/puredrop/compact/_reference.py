"""Reference of gather and scatter in plain torch, for any device and dtype; the compiled library must equal it."""

from __future__ import annotations

from torch import Tensor

from puredrop.compact.kept import Kept

__all__ = ["gather", "scatter"]


def gather(dense: Tensor, rows: Kept | None, columns: Kept | None, scale: float, step: int, panels: Tensor) -> None:
    """Write the scaled panels of a matrix; arguments as `panels.gather`."""
    panels.zero_()
    for group, panel in enumerate(panels):
        part = dense[rows.units(group)] if rows else dense[group * step :][: panel.shape[0]]
        part = part.index_select(1, columns.units(group)) if columns else part
        panel[: part.shape[0], : part.shape[1]] = part * scale


def scatter(panels: Tensor, rows: Kept | None, columns: Kept | None, scale: float, step: int, dense: Tensor) -> None:
    """Write the scaled sum of panels in their places; arguments as `panels.scatter`."""
    dense.zero_()
    for group, panel in enumerate(panels):
        whole = dense.new_zeros(panel.shape[0], *dense.shape[1:])
        if columns:
            units = columns.units(group)
            whole.index_copy_(1, units, panel[:, : len(units)] * scale)
        else:
            whole.copy_(panel * scale)
        if rows:
            units = rows.units(group)
            dense.index_add_(0, units, whole[: len(units)])
        else:
            dense[group * step :][: panel.shape[0]] += whole
