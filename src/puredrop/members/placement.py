"""Placement of the rows in the tensors that sites drop from, shown by forwards with different numbers of rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._text import first_line
from puredrop._torch import watch_operators
from puredrop.inspection.axes import Axis, AxisTrace, counts_apart, is_rowwise, sizes_of
from puredrop.members.engine import Engine
from puredrop.members.inputs import Batch
from puredrop.members.sites import Axes, SiteInput
from puredrop.ops import PACKED

__all__ = ["find_axes"]

_LEAST = 4
"""More rows than this are tried; if the model does not run on them, so many."""


class _TrialInput(NamedTuple):
    """An input of a site, and where operators or values show the rows; None if they do not."""

    site: SiteInput
    axis: Axis | None


Use = tuple[str, int]
"""Path of a site, and how many uses of it came before."""
FewInputs = Mapping[Use, SiteInput]
"""The input of each use with few rows."""


def find_axes(root: Module, few: Batch, first: FewInputs, silent: Set[Use], trial: Engine) -> Axes:
    """Return where the rows lie in the input of each use of a site; nothing if the layers' own word will do.

    One forward without dropout runs on more rows, copies of those that there are. A dimension that grows with the rows
    holds them. In which order it holds them with heads or tokens, the operators before it show, or else the values:
    rows that are equal in the model's input are equal there.

    Args:
        root: the model, unwrapped.
        few: two rows.
        first: the inputs of all uses with these rows.
        silent: uses that leave nothing to chance, of which none is refused.
        trial: an engine whose sites drop nothing.

    Raises:
        ValueError: for a site whose rows cannot be found, or at which rows meet.
    """
    if not first or (few.dim == 0 and is_rowwise(root, few.args, few.kwargs)):
        return {}
    sizes = sizes_of(root) | {size for tensor in few.tensors for size in tensor.shape if size}
    apart = next(counts_apart(sizes, _LEAST))
    for rows, count in ((_varied(few), apart), (few, apart), (few, _LEAST)):
        try:
            more = _tried(trial, rows, count)
        except Exception as error:  # any error of a model's forward on other rows than the user's
            why = first_line(error, 100)
            continue
        _check_number(first, few.rows, more, count)
        axes: dict[tuple[str, int | None], Axis | None] = {}
        for use, observed in more.items():
            try:
                axes[use] = _located(observed, count, first.get(use), few.rows)
            except ValueError:
                if use not in silent:
                    raise
        return axes | _common(axes)
    warnings.warn(
        f"the model runs on {few.rows} rows and not on {_LEAST} ({why}), which would show where rows lie in what is "
        "dropped; where its layers have them is taken for granted",
        stacklevel=2,
    )
    return {}


def _varied(few: Batch) -> Batch:
    """Return two rows that differ: if all their values are equal, those of the second are shifted by one."""

    def is_same(tensor: Tensor) -> bool:
        has_rows = tensor.dim() > few.dim and tensor.shape[few.dim] == few.rows
        return not has_rows or torch.equal(*tensor.split(1, few.dim))

    def shifted(tensor: Tensor) -> Tensor:
        first, second = tensor.split(1, few.dim)
        return torch.cat([first, second.roll(1, -1)], few.dim)

    return few.mapped(shifted) if all(map(is_same, few.tensors)) else few


def _tried(trial: Engine, few: Batch, count: int) -> dict[Use, _TrialInput]:
    """Run the model on copies of its rows and return what sites get."""
    # Rows in an order that looks the same from no other start: 1 at the squares modulo the count.
    pattern = torch.zeros(count, dtype=torch.long)
    pattern[torch.arange(count).square() % count] = 1
    trace, found = AxisTrace(count), dict[Use, _TrialInput]()
    batch = few.select(pattern)

    def see(site: SiteInput, input: Tensor) -> None:
        axis = trace.axis(input)
        found[site.path, site.call] = _TrialInput(site, _by_values(input, pattern) if axis is None else axis)

    trial.see = see
    for tensor in batch.tensors:
        if tensor.dim() > few.dim and tensor.shape[few.dim] == count:
            trace.mark(tensor, Axis(few.dim, 1, 1))
    with trial.opened(), watch_operators(trace.see):
        trial.outputs(batch, [0])
    return found


def _by_values(input: Tensor, pattern: Tensor) -> Axis | None:
    """Return where rows lie that are equal where the pattern is; None unless one place alone fits."""
    count = len(pattern)
    dims = [dim for dim, size in enumerate(input.shape) if size and size % count == 0]
    if len(dims) != 1 or not input.is_floating_point():
        return None
    (dim,), fits = dims, []
    values = input.detach().movedim(dim, 0)
    scale = float(values.abs().nan_to_num(0, posinf=0).max())
    error = scale * (1e-5 if input.dtype in (torch.float32, torch.float64) else 1e-2)
    each = input.shape[dim] // count
    for outer in range(1, each + 1):
        if each % outer == 0:
            rows = values.reshape(outer, count, -1).movedim(1, 0)
            zero, one = rows[pattern.to(rows.device) == 0], rows[pattern.to(rows.device) == 1]
            is_same = all(torch.allclose(part, part[:1], rtol=0, atol=error, equal_nan=True) for part in (zero, one))
            if is_same and not torch.allclose(zero[0], one[0], rtol=0, atol=10 * error, equal_nan=True):
                fits.append(Axis(dim, outer, each // outer))
    return fits[0] if len(fits) == 1 else None


def _located(observed: _TrialInput, count: int, before: SiteInput | None, rows: int) -> Axis | None:
    """Return where the rows lie in one use, from its inputs with many and with few rows.

    Raises:
        ValueError: if they cannot be found, or rows meet.
    """
    site = observed.site
    shape = site.shape
    if before is not None and len(before.shape) != len(shape):
        raise ValueError(_refusal(site, count, f"and from {before.shape} for {rows} rows; drop from one rank"))
    if before is None:
        dims = [dim for dim, size in enumerate(shape) if size and size % count == 0]
    else:
        dims = [dim for dim, size in enumerate(shape) if size != before.shape[dim]]
    dims = [dim for dim in dims if dim not in site.shared_dims]
    if not dims:
        return None
    if site.dim == PACKED:
        raise ValueError(
            _refusal(site, count, "a packed sequence, whose rows are no samples; use padded sequences (batch_first)")
        )
    if len(dims) > 1:
        raise ValueError(
            _refusal(site, count, f"rows meet in dimensions {dims}; are batch_first= and sample_dim= right?")
        )
    dim = dims[0]
    each, remainder = divmod(shape[dim], count)
    if remainder or (before is not None and before.shape[dim] != each * rows):
        few = "" if before is None else f" and {before.shape[dim]} for {rows}"
        raise ValueError(
            _refusal(
                site, count, f"whose dimension {dim}{few} does not follow the rows; drop before rows are cut or joined"
            )
        )
    if each <= 1:
        return Axis(dim, 1, 1)
    axis = observed.axis
    if axis is None or axis.dim != dim or axis.outer * axis.inner != each:
        raise ValueError(
            _refusal(
                site,
                count,
                f"and nothing shows in which order dimension {dim} holds {each} indices of each row; put the rows into "
                "a dimension of their own, such as by x.unflatten(0, (rows, -1))",
            )
        )
    return axis


def _common(axes: Axes) -> dict[tuple[str, int | None], Axis | None]:
    """Return for each path what its uses have in common, for uses that a later forward adds."""
    common: dict[tuple[str, int | None], Axis | None] = {}
    differing = set[str]()
    for (path, _), axis in axes.items():
        if common.setdefault((path, None), axis) != axis:
            differing.add(path)
    return {key: axis for key, axis in common.items() if key[0] not in differing}


def _check_number(first: FewInputs, rows: int, more: Iterable[Use], count: int) -> None:
    """Raise ValueError for a site that is used once more, or equally many times more, for each further row."""
    few, many = Counter(path for path, _ in first), Counter(path for path, _ in more)
    for path, uses in many.items():
        each, remainder = divmod(uses - few[path], count - rows)
        if few[path] >= rows and each > 0 and not remainder:
            raise ValueError(
                f"site {path!r} is used {few[path]} times for {rows} rows and {uses} times for {count}, so that no use "
                "belongs to one row for good; drop from all rows in one call"
            )


def _refusal(site: SiteInput, count: int, why: str) -> str:
    return f"site {site.path!r} drops from {site.shape} for {count} rows, {why}"
