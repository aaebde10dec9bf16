"""Arguments that describe a mask, checked and converted to the operator's form."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from puredrop.ops._values import LIMIT, check_ids_in_range, check_size, is_readable

__all__ = [
    "Place",
    "WHOLE",
    "Window",
    "as_sizes",
    "check_dtype",
    "check_switch",
    "check_tensor",
    "check_window",
    "place_of",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_sizes(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Check sizes or offsets, one per dimension.

    Raises:
        TypeError: if the values are no sequence of integers.
        ValueError: if a value is negative, or 2^63 or more.
    """
    try:
        given = tuple(values)
    except TypeError:
        raise TypeError(f"{name} is {values!r}; expected a sequence of integers, one per dimension") from None
    sizes = tuple(_size(name, given, size) for size in given)
    for size in sizes:
        if size < 0:
            raise ValueError(f"{name} is {sizes!r}; expected no negative entry")
        if size >= LIMIT:
            raise ValueError(f"{name} is {sizes!r}; expected entries below 2^63")
    return sizes


def _size(name: str, given: tuple[int, ...], size: int) -> int:
    """Return an integer of any kind, such as NumPy's, as Python's; a compiler's SymInt stays one."""
    if type(size) is int or isinstance(size, torch.SymInt):
        return size
    try:
        if not isinstance(size, (bool, np.bool_, Tensor)):
            return operator.index(size)
    except TypeError:
        pass
    raise TypeError(f"{name} is {given!r}; expected integers, got {size!r}")


@dataclass(frozen=True)
class Window:
    """The position of a tensor in a larger logical tensor whose mask it shares.

    Use it when a process or a loop holds only a part of a tensor (a batch shard, a slice, a micro-batch) and must drop
    what one call on the whole tensor would drop. docs/masks.md explains logical indices.

    Args:
        shape: sizes of the whole logical tensor, one per dimension.
        offset: index of this part's first element in the whole tensor, one per dimension.

    Raises:
        TypeError: if an entry is not an integer.
        ValueError: if an entry is negative, or 2^63 or more, or shape and offset differ in length.

    >>> Window((64, 512), (32, 0))
    Window(shape=(64, 512), offset=(32, 0))
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_sizes("Window: shape", self.shape))
        object.__setattr__(self, "offset", as_sizes("Window: offset", self.offset))
        if len(self.shape) != len(self.offset):
            raise ValueError(
                f"Window: offset is {self.offset}, shape is {self.shape}; "
                "expected as many entries in one as in the other"
            )


@dataclass(frozen=True)
class Place:
    """The place of a tensor in its logical tensor, in the operator's form.

    Args:
        shared_dims: sorted, non-negative dimensions over which elements share one decision.
        window_shape: sizes of the logical tensor, or None where they are the tensor's own.
        window_offset: index of the tensor's first element in the logical tensor, or None.
        sample_ids: int64 tensor (n,) that replaces the index along sample_dim, or None.
        sample_dim: dimension that sample_ids names, non-negative.
    """

    shared_dims: tuple[int, ...] = ()
    window_shape: tuple[int, ...] | None = None
    window_offset: tuple[int, ...] | None = None
    sample_ids: Tensor | None = None
    sample_dim: int = 0

    @property
    def is_whole(self) -> bool:
        """Return whether the tensor is its own logical tensor, with a decision for each element."""
        return not self.shared_dims and self.window_shape is None and self.sample_ids is None


WHOLE = Place()


def check_switch(name: str, value: bool) -> None:
    """Check that a switch is True or False: a text such as "False" would count as True.

    Raises:
        TypeError: if the value is anything else, as torch does.
    """
    if not isinstance(value, (bool, torch.SymBool)):
        raise TypeError(f"{name} is {value!r}; expected True or False")


def place_of(
    shape: Sequence[int],
    shared_dims: Iterable[int] = (),
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Place:
    """Check a tensor's place in its logical tensor, and convert it to the operator's form.

    Args:
        shape: sizes of the tensor.
        shared_dims, window, sample_ids, sample_dim: as in `puredrop.functional.dropout`.

    Returns:
        The place.

    Raises:
        TypeError: if an argument is of the wrong type, or sample_ids not int64.
        ValueError: if a dimension is out of range or repeated, the window does not fit, or the ids do not fit.
    """
    if window is None and sample_ids is None:
        if type(shared_dims) is tuple and not shared_dims:
            return WHOLE
        if type(shared_dims) is range and not torch.compiler.is_compiling():  # which would warn of the cache
            return _shared(len(shape), shared_dims)
    shared_dims = _dims(len(shape), shared_dims)
    if window is None and sample_ids is None:
        return Place(shared_dims)
    offset: tuple[int, ...] | None = None
    logical = tuple(shape)
    if window is not None:
        check_window(window)
        logical, offset = window.shape, window.offset
        _check_window(shape, window, shared_dims, sample_dim=None if sample_ids is None else sample_dim)
    if sample_ids is not None:
        sample_dim = _dim("sample_dim", sample_dim, len(shape))
        _check_ids(sample_ids, shape, logical, shared_dims, sample_dim, offset)
    _check_size(logical, shared_dims)
    return Place(shared_dims, logical, offset, sample_ids, sample_dim)


def _dim(name: str, dim: int, rank: int) -> int:
    try:
        index = operator.index(dim)
    except TypeError:
        raise TypeError(f"{name} is {dim!r}; expected an integer") from None
    if not -rank <= index < rank:
        raise ValueError(
            f"{name} is {dim}; expected a dimension of the {rank}-dimensional input, {-rank} to {rank - 1}"
        )
    return index % rank


def _dims(rank: int, shared_dims: Iterable[int]) -> tuple[int, ...]:
    if isinstance(shared_dims, int):
        raise TypeError(f"shared_dims is {shared_dims!r}; expected a sequence (try shared_dims=({shared_dims},))")
    dims = tuple(sorted(_dim("shared_dims", dim, rank) for dim in shared_dims))
    if len(set(dims)) != len(dims):
        raise ValueError(f"shared_dims is {tuple(shared_dims)}; expected each dimension once")
    return dims


@functools.lru_cache(maxsize=256)
def _shared(rank: int, shared_dims: range) -> Place:
    """Cache the place of channel dropout, of which a model has few.

    The argument is a range because a tuple's 1.0 would hit the cache entry of a tuple's 1.
    """
    return Place(_dims(rank, shared_dims))


def _check_window(shape: Sequence[int], window: Window, shared_dims: tuple[int, ...], sample_dim: int | None) -> None:
    rank = len(shape)
    if len(window.shape) != rank:
        raise ValueError(
            f"window has {len(window.shape)} dimensions, the input {rank}; "
            "expected one entry for each of its dimensions"
        )
    named = None if sample_dim is None else _dim("sample_dim", sample_dim, rank)
    for dim, size in enumerate(shape):
        if dim in shared_dims or dim == named:
            continue
        if window.offset[dim] + size > window.shape[dim]:
            raise ValueError(
                f"window does not fit along dimension {dim}: offset {window.offset[dim]} and input size {size} "
                f"go beyond shape {window.shape[dim]}; give the whole logical tensor's sizes as window.shape"
            )


def _check_ids(
    ids: Tensor,
    shape: Sequence[int],
    logical: Sequence[int],
    shared_dims: tuple[int, ...],
    dim: int,
    offset: tuple[int, ...] | None,
) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"sample_ids is {type(ids).__name__}; expected a torch.int64 tensor (try torch.tensor(ids))")
    if ids.dtype != torch.int64:
        raise TypeError(f"sample_ids has dtype {ids.dtype}; expected torch.int64 (try sample_ids.long())")
    if ids.dim() != 1 or ids.shape[0] != shape[dim]:
        raise ValueError(
            f"sample_ids has shape {tuple(ids.shape)}; expected ({shape[dim]},), one id per index along "
            f"sample_dim={dim} (is sample_dim right?)"
        )
    if dim in shared_dims:
        raise ValueError(f"sample_ids names dimension {dim}, which shared_dims shares; drop it from one of the two")
    if offset is not None and offset[dim] != 0:
        raise ValueError(
            f"window.offset[{dim}] is {offset[dim]}; expected 0 along sample_dim, "
            "because the ids already say which samples"
        )
    if is_readable(ids):
        check_ids_in_range(ids, logical, shared_dims, dim)


def _check_size(logical: Sequence[int], shared_dims: tuple[int, ...]) -> None:
    if torch.compiler.is_compiling():
        return  # sizes may be symbols; the operator checks them when it runs
    check_size(logical, shared_dims)


def check_window(window: Window) -> None:
    """Check that a value is a window.

    Raises:
        TypeError: if the value is anything else.
    """
    if not isinstance(window, Window):
        raise TypeError(f"window is {window!r}; expected puredrop.Window(shape, offset)")


def check_tensor(name: str, value: Tensor) -> int:
    """Check that a value is a tensor.

    Returns:
        The tensor's number of dimensions.

    Raises:
        TypeError: if the value is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; expected a torch.Tensor")
    return value.dim()


def check_dtype(input: Tensor) -> None:
    """Check that a tensor has a dtype that a mask can scale.

    Raises:
        RuntimeError: if the dtype is not float16, bfloat16, float32 or float64 (the class that torch raises).
    """
    if input.dtype in _FLOATS:
        return
    if input.dtype.is_complex:
        fix = "drop its parts together: view_as_complex(dropout(view_as_real(input), ..., shared_dims=(-1,)))"
    else:
        fix = "try input.float()"
    raise RuntimeError(
        f"dropout: input has dtype {input.dtype}; expected float16, bfloat16, float32 or float64 ({fix})"
    )
