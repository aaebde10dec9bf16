"""Calls of the compiled library, packed from tensors as csrc/puredrop.h lays them out."""

from __future__ import annotations

import functools
import math
import struct
import sys

import numpy as np
import torch
from torch import Tensor

from puredrop._backend import library
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
    """
    compiled = library()
    assert compiled is not None
    if not inplace:
        output = torch.empty_like(input)
    else:
        output = input
        if not input.is_inference():
            torch.autograd.graph.increment_version(input)  # torch does not see the library's write
    count = input.numel()
    if count == 0:
        return output
    dtype, to, at = _DTYPES[input.dtype], output.data_ptr(), input.data_ptr()
    second_at = 0 if second is None else second.data_ptr()
    third_at = 0 if third is None else third.data_ptr()
    is_contiguous = (
        input.is_contiguous()
        and (second is None or second.is_contiguous())
        and (third is None or third.is_contiguous())
    )
    if is_contiguous and (place is WHOLE or place.is_whole):
        status = compiled.run(_pack_run(op, dtype, key, p, to, at, second_at, third_at, 0, 1, count, 1, 1, 1, 1, 1, 0))
    else:
        strides = None
        if not is_contiguous:
            strides = tuple(None if operand is None else operand.stride() for operand in (output, input, second, third))
        ids, named = place.sample_ids, None if place.sample_ids is None else place.sample_dim
        start, dims = _layout(input.shape, strides, place.shared_dims, place.window_shape, place.window_offset, named)
        if ids is not None:
            if not (ids.is_cpu and ids.is_contiguous()):
                ids = ids.to("cpu").contiguous()  # held until the call returns
            end = (place.sample_dim + 1) * _DIM_SIZE
            dims = dims[: end - 8] + ids.data_ptr().to_bytes(8, sys.byteorder) + dims[end:]
        status = compiled.run(_pack_head(op, dtype, key, p, to, at, second_at, third_at, start, input.dim()) + dims)
    if status:
        raise RuntimeError(f"puredrop: torch's thread pool failed with status {status}; set PUREDROP_BACKEND=reference")
    return output


@functools.lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...] | None, ...] | None,
    shared_dims: tuple[int, ...],
    window_shape: tuple[int, ...] | None,
    window_offset: tuple[int, ...] | None,
    named: int | None,
) -> tuple[int, bytes]:
    """Return the first element's logical index, modulo 2^64, and the dimensions as the library reads them, without ids.

    Strides are the operands' strides, or None where all operands are contiguous.
    """
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
    fields: list[int] = []
    for d, size in enumerate(shape):
        fields += (size, logical[d], *(0 if operand is None else operand[d] for operand in strides), 0)
    return start & _ALL, struct.pack(_DIM * len(shape), *fields)


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
