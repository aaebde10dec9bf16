"""Calls of the compiled library, packed from tensors as csrc/puredrop.h lays them out."""

from __future__ import annotations

import functools
import math
import struct
import sys

import numpy as np
import torch
from torch import Tensor

from puredrop._backend import WRONG, library
from puredrop.ops._arguments import WHOLE, Place

__all__ = [
    "ADD",
    "BIAS_ADD",
    "DROPOUT",
    "GELU",
    "GELU_BACKWARD",
    "RELU",
    "RELU_BACKWARD",
    "check_overlap",
    "run",
]

# In the order of the header's enumerations.
DROPOUT, RELU, RELU_BACKWARD, GELU, GELU_BACKWARD, ADD, BIAS_ADD = range(7)
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# Operations that read x alone; the others read `second`, and BIAS_ADD `third` too.
_UNARY = (DROPOUT, RELU, GELU)

_HEAD, _DIM = "qqQdQQQQQq", "qQqqqqQ"
_ALL = 2**64 - 1
_DIM_SIZE = struct.calcsize(_DIM)
_pack_head = struct.Struct(_HEAD).pack
# Operands that are all contiguous are one run, whatever their shape.
_pack_run = struct.Struct(_HEAD + _DIM).pack


def run(
    op: int,
    input: Tensor,
    key: int,
    p: float,
    place: Place,
    second: Tensor | None = None,
    third: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Run one pass over a CPU tensor.

    Args:
        op: operation, one of this module's names; csrc/puredrop.h defines each.
        input: strided float tensor of any strides.
        key: number below 2^64.
        p: drop probability in [0, 1].
        place: place of the input in its logical tensor.
        second, third: further operands of the operation, of the input's shape and dtype.
        inplace: write into the input, whose elements must not overlap.

    Returns:
        A new tensor of the input's memory format, or the input.

    Raises:
        TypeError: if a tensor has a wrong dtype, or an operand is missing or no tensor.
        ValueError: if a tensor is not in the CPU's memory, or a size, dimension or number is out of range.
    """
    compiled = library()
    assert compiled is not None
    # The library trusts addresses and sizes, so no wrong ones may leave this function, whoever calls it. It sees by
    # itself, in no time, whether op, p and the operands are there and fit each other.
    if not input.is_cpu:
        raise ValueError(f"input is on device {input.device}; expected the CPU")
    if second is not None:
        _check_operand("second", second, input)
    if third is not None:
        _check_operand("third", third, input)
    if not inplace:
        output = torch.empty_like(input)
    else:
        output = input
        if not input.is_inference():
            torch.autograd.graph.increment_version(input)  # torch does not see the library's write
    count = input.numel()
    if count == 0:
        return output
    to, at = output.data_ptr(), input.data_ptr()
    second_at = 0 if second is None else second.data_ptr()
    third_at = 0 if third is None else third.data_ptr()
    is_contiguous = (
        input.is_contiguous()
        and (second is None or second.is_contiguous())
        and (third is None or third.is_contiguous())
    )
    try:
        dtype = _DTYPES[input.dtype]
        if is_contiguous and (place is WHOLE or place.is_whole):
            call = _pack_run(op, dtype, key, p, to, at, second_at, third_at, 0, 1, count, 1, 1, 1, 1, 1, 0)
        else:
            strides = None
            if not is_contiguous:
                operands = (output, input, second, third)
                strides = tuple(None if operand is None else operand.stride() for operand in operands)
            start, rank, dims, _ids = _dims(input.shape, strides, place)  # ids are held until the call returns
            call = _pack_head(op, dtype, key, p, to, at, second_at, third_at, start, rank) + dims
    except (KeyError, struct.error):
        raise _refusal(op, input, key, p, second, third) from None
    status = compiled.run(call)
    if status:
        if status == WRONG:
            raise _refusal(op, input, key, p, second, third)
        raise RuntimeError(f"puredrop: torch's thread pool failed with status {status}; set PUREDROP_BACKEND=reference")
    return output


def _check_operand(name: str, operand: Tensor, input: Tensor) -> None:
    """Check that a further operand has the input's dtype, shape and device."""
    if not isinstance(operand, Tensor) or operand.dtype is not input.dtype:
        found = f"a tensor of dtype {operand.dtype}" if isinstance(operand, Tensor) else repr(operand)
        raise TypeError(f"{name} is {found}; expected a tensor of the input's dtype {input.dtype}")
    if operand.shape != input.shape:
        raise ValueError(f"{name} has shape {tuple(operand.shape)}; expected the input's, {tuple(input.shape)}")
    if not operand.is_cpu:
        raise ValueError(f"{name} is on device {operand.device}; expected the CPU")


def _refusal(
    op: int, input: Tensor, key: int, p: float, second: Tensor | None, third: Tensor | None
) -> TypeError | ValueError:
    """Return the error that says why a call cannot be packed, or why the library has refused it."""
    if input.dtype not in _DTYPES:
        return TypeError(f"input has dtype {input.dtype}; expected float32, float64, bfloat16 or float16")
    if not isinstance(key, int) or not 0 <= key <= _ALL:
        return ValueError(f"key is {key!r}; expected an integer below 2^64, not negative")
    if not isinstance(op, int) or not DROPOUT <= op <= BIAS_ADD:
        return ValueError(f"op is {op!r}; expected {DROPOUT} to {BIAS_ADD}")
    for name, operand, reads in (("second", second, op not in _UNARY), ("third", third, op == BIAS_ADD)):
        if reads != (operand is not None):
            found = "None" if operand is None else "a tensor"
            return TypeError(f"{name} is {found}; expected {'a tensor' if reads else 'None'} with operation {op}")
    for name, operand in (("input", input), ("second", second), ("third", third)):
        if operand is not None and not operand.data_ptr():
            return _without_memory(name)
    return ValueError(f"p is {p!r}; expected a number in [0, 1]")


def _without_memory(name: str) -> ValueError:
    return ValueError(f"{name} has no memory, as after its storage was resized to 0; expected a tensor that holds data")


def _dims(
    shape: torch.Size, strides: tuple[tuple[int, ...] | None, ...] | None, place: Place
) -> tuple[int, int, bytes, Tensor | None]:
    """Return start, number and bytes of the dimensions as the library reads them, and the ids that they point to."""
    ids, named = place.sample_ids, None if place.sample_ids is None else place.sample_dim
    if ids is not None:
        _check_ids(ids, place.sample_dim, shape)
    start, rank, at, dims = _layout(shape, strides, place.shared_dims, place.window_shape, place.window_offset, named)
    if ids is not None:
        if not (ids.is_cpu and ids.is_contiguous()):
            ids = ids.to("cpu").contiguous()
        address = ids.data_ptr()
        if not address:
            raise _without_memory("sample_ids")
        dims = dims[:at] + address.to_bytes(8, sys.byteorder) + dims[at + 8 :]
    return start, rank, dims, ids


def _check_ids(ids: Tensor, dim: int, shape: torch.Size) -> None:
    """Check that there is an id for each index along a dimension."""
    if not 0 <= dim < len(shape):
        raise ValueError(f"sample_dim is {dim}; expected a dimension of the input, 0 to {len(shape) - 1}")
    if ids.dtype is not torch.int64:
        raise TypeError(f"sample_ids has dtype {ids.dtype}; expected torch.int64")
    if ids.shape != (shape[dim],):
        raise ValueError(
            f"sample_ids has shape {tuple(ids.shape)}; expected ({shape[dim]},), one id per index along "
            f"sample_dim={dim}"
        )
    if ids.is_meta:
        raise _without_memory("sample_ids")


@functools.lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...] | None, ...] | None,
    shared_dims: tuple[int, ...],
    window_shape: tuple[int, ...] | None,
    window_offset: tuple[int, ...] | None,
    named: int | None,
) -> tuple[int, int, int, bytes]:
    """Return what the library reads of a call's dimensions: their start, number, place of ids, and bytes without ids.

    The start is the first element's logical index, modulo 2^64. Dimensions of size 1 are left out unless they have ids;
    so no more are left than the library takes, 64. Strides are the operands' strides, or None where all operands are
    contiguous.
    """
    rank = len(shape)
    if not all(0 <= d < rank for d in shared_dims):
        raise ValueError(f"shared_dims is {shared_dims}; expected dimensions of the input, 0 to {rank - 1}")
    for name, entries in (("window_shape", window_shape), ("window_offset", window_offset)):
        if entries is not None and len(entries) != rank:
            raise ValueError(f"{name} is {entries}; expected {rank} entries, one for each dimension of the input")
    logical, start, stride = [0] * len(shape), 0, 1
    for d in reversed(range(len(shape))):
        if d in shared_dims:
            continue
        logical[d] = stride & _ALL
        if window_offset is not None and d != named:
            start += window_offset[d] * stride
        stride *= shape[d] if window_shape is None else window_shape[d]
    if strides is None:
        strides = (tuple(math.prod(shape[d + 1 :]) for d in range(len(shape))),) * 4
    dims, ids_at = b"", 0
    for d, size in enumerate(shape):
        if size != 1 or d == named:
            dims += struct.pack(
                _DIM, size, logical[d], *(0 if operand is None else operand[d] for operand in strides), 0
            )
        if d == named:
            ids_at = len(dims) - 8
    return start & _ALL, len(dims) // _DIM_SIZE, ids_at, dims


def check_overlap(tensor: Tensor) -> None:
    """Check that no two elements of a tensor share a memory location, before a write into the tensor.

    Raises:
        RuntimeError: in torch's words; unlike torch, for every such tensor and not for expanded ones alone.
    """
    if tensor.is_contiguous():
        return
    sizes_and_strides = sorted(
        ((size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1),
        key=lambda pair: pair[1],
    )
    reach, nests = 0, True
    for size, stride in sizes_and_strides:
        nests &= stride > reach
        reach += (size - 1) * stride
    if nests or tensor.numel() == 0:
        return
    # Interleaved dimensions need not overlap (as_strided((2, 3), (3, 2)) does not), so compare all offsets.
    offsets = np.zeros(1, dtype=np.int64)
    for size, stride in sizes_and_strides:
        offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
    if len(np.unique(offsets)) < len(offsets):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            f"location (sizes {tuple(tensor.shape)}, strides {tensor.stride()}). Please clone() the tensor before "
            "performing the operation, or pass inplace=False"
        )
