"""Independent answers: the contract element by element in Python's integers, sharing no code with the package."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VECTORS: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "data/vectors.json").read_text())

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def philox(key: int, counter: tuple[int, int, int, int]) -> list[int]:
    c = list(counter)
    k = [key % 2**32, key // 2**32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b // 2**32 ^ c[1] ^ k[0], b % 2**32, a // 2**32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def keeps(key: int, j: int, p: float) -> bool:
    """Whether element j is kept, from its whole 64-bit number at once instead of digit by digit."""
    k = round(Fraction(p) * 2**64)
    number = 0
    for plane in range(8):
        block = j // 16
        words = philox(key, (block % 2**32, block // 2**32, plane, 0))
        data = b"".join(word.to_bytes(4, "little") for word in words)
        number = number * 256 + data[j % 16]
    return number >= k


def logical(
    shape: tuple[int, ...],
    shared_dims: tuple[int, ...] = (),
    window: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ids: list[int] | None = None,
    sample_dim: int = 0,
) -> list[int]:
    """The logical index of every element, in row-major order of the elements."""
    whole, offset = window or (shape, (0,) * len(shape))
    sizes = [1 if d in shared_dims else whole[d] for d in range(len(shape))]
    strides = [math.prod(sizes[d + 1 :]) for d in range(len(shape))]
    result = []
    for at in itertools.product(*map(range, shape)):
        j = 0
        for d, i in enumerate(at):
            if d in shared_dims:
                continue
            j += (ids[i] if ids is not None and d == sample_dim else offset[d] + i) * strides[d]
        result.append(j)
    return result


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bit patterns, so that equality tells +0 from -0 and a NaN equals itself."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(width)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))
