"""Random arguments of dropout functions: tensors, rates, keys and places, most of them valid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacks.outcome import Choices
from puredrop import Key, Window

__all__ = ["FLOATS", "any_key", "any_place", "any_rate", "any_tensor", "any_wrong_input", "any_wrong_value", "values"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OTHER_DTYPES = (
    torch.int8, torch.uint8, torch.int16, torch.int64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 129, 300, 513)
_RANKS = (0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6)
_SPECIAL = (math.nan, math.inf, -math.inf, 1e-310, 6e-8, -0.0, 0.0, 65504.0, 3e38, 1e308)
_RATES = (
    0.0, 1.0, 0.5, 0.5, 0.1, 0.3, 0.25, 0.75, 0.9, 1e-10, 2.0**-64, 2.0**-65, 2.0**-63, 3 * 2.0**-66, 2.0**-12,
    1 - 2.0**-53, 1 - 2.0**-52, 257 / 65536, 5e-324, 0.999, 1 / 3, 0.0078125, 2.0**-8 + 2.0**-20,
)  # fmt: skip
_WRONG_VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 7, 2**70, 0.5, 1.5, math.nan, 0.5j, "", "0.5", "True", b"x", [], [1], (0, 1), {}, {"a": 1},
    int, Fraction(1, 2), np.float32(0.5), np.int64(1), np.bool_(True), np.array(0.5), np.array([1, 2]), torch.tensor(1),
    torch.tensor(0.5), torch.ones(2), torch.ones(2, dtype=torch.int64), torch.tensor([True]), torch.float32,
    torch.device("cpu"), Key(1), Window((4,), (0,)), slice(None), ...,
)  # fmt: skip
"""Values of other types than an argument has; each is right for some argument, so some calls stay valid."""
_SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


def values(choices: Choices, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return random values, some of them NaN, infinite, subnormal or a zero with a sign."""
    if dtype.is_complex:
        return torch.randn(tuple(shape), generator=choices.torch, dtype=dtype)
    if dtype == torch.bool or not dtype.is_floating_point:
        return torch.randint(0, 2 if dtype == torch.bool else 100, tuple(shape), generator=choices.torch).to(dtype)
    tensor = torch.randn(tuple(shape), generator=choices.torch, dtype=torch.float64)
    if choices.chance(0.05):
        tensor *= choices.choice((1e-40, 1e38, 1e-7, 6e4))
    if choices.chance(0.15) and tensor.numel():
        flat = tensor.view(-1)
        for _ in range(choices.randint(1, 3)):
            flat[choices.randrange(len(flat))] = choices.choice(_SPECIAL)
    return tensor.to(dtype)


def _most(shape: list[int]) -> int:
    """Return the number of elements where a size of 0 counts as 1, since a slice is cut from a larger tensor."""
    return math.prod(max(1, size) for size in shape)


def any_shape(choices: Choices, rank: int | None = None) -> list[int]:
    """Return sizes of a tensor: mostly of a few hundred elements, rarely of 400 000, sometimes of none."""
    is_large = choices.chance(0.01)
    limit = 300_000 if is_large else 3000
    shape: list[int] = []
    for _ in range(choices.choice(_RANKS) if rank is None else rank):
        size = choices.choice(_SIZES)
        if size == 0 and choices.chance(0.8):
            size = 1
        if _most(shape) * size > limit:
            size = choices.randint(1, 3)
        shape.append(size)
    if is_large and shape:
        at, size = choices.randrange(len(shape)), choices.choice((1000, 2048, 2049, 4097))
        if _most(shape[:at] + shape[at + 1 :]) < 100:
            shape[at] = size
    return shape


def any_tensor(choices: Choices, rank: int | None = None) -> Tensor:
    """Return a tensor of any dtype, shape and strides."""
    dtype = choices.choice(FLOATS if choices.chance(0.95) else _OTHER_DTYPES)
    shape = any_shape(choices, rank)
    form = choices.choice(
        ("dense", "dense", "permuted", "sliced", "expanded", "offset", "channels_last", "overlapping", "negated")
    )
    if form == "permuted":
        order = choices.sample(range(len(shape)), len(shape))
        tensor = values(choices, [shape[i] for i in order], dtype)
        return tensor.permute([order.index(i) for i in range(len(shape))])
    if form == "sliced":
        cuts = [slice(start, start + size * step, step) if size else slice(start, start) for size, start, step in
                ((size, choices.randint(0, 1), choices.choice((1, 1, 2, 3))) for size in shape)]  # fmt: skip
        return values(choices, [cut.stop for cut in cuts], dtype)[tuple(cuts)]
    if form == "expanded":
        return values(choices, [1 if choices.chance(0.4) else size for size in shape], dtype).expand(shape)
    if form == "offset":
        start = choices.randint(1, 16)
        return values(choices, [math.prod(shape) + start], dtype)[start:].view(shape)
    if form == "channels_last" and len(shape) == 4:
        return values(choices, shape, dtype).contiguous(memory_format=torch.channels_last)
    if form == "negated" and dtype in (torch.float32, torch.float64):
        return torch.complex(values(choices, shape, dtype), values(choices, shape, dtype)).conj().imag
    if form == "overlapping":
        strides = [choices.choice((0, 1, 2, 3, 5)) for _ in shape]
        end = 1 + sum(max(size - 1, 0) * stride for size, stride in zip(shape, strides, strict=True))
        return values(choices, [end], dtype).as_strided(shape, strides)
    return values(choices, shape, dtype)


def any_rate(choices: Choices) -> Any:
    """Return a drop probability, mostly a number in [0, 1]; also what is none."""
    p = choices.choice(_RATES) if choices.chance(0.6) else choices.random()
    kind = choices.random()
    if kind < 0.75:
        return p
    if kind < 0.85:
        return torch.tensor(p, dtype=choices.choice(FLOATS))
    if kind < 0.95:
        as_others: tuple[Any, ...] = (
            np.float16(p), np.float32(p), np.float64(p), np.int64(p), np.bool_(p > 0.5), np.array(p),
            Fraction(p).limit_denominator(1000), Fraction(p), int(p), bool(p > 0.5),
            torch.nn.Parameter(torch.tensor(p), requires_grad=False), torch.tensor(p, requires_grad=True),
        )  # fmt: skip
        return choices.choice(as_others)
    return choices.choice((
        -0.1, 1.5, math.nan, math.inf, -0.0, 1 + 1e-15, 2, -1, "0.5", None, [0.5], torch.tensor([0.5]), torch.tensor(1),
        torch.tensor(math.nan), torch.tensor(1.5), torch.tensor(-0.5, dtype=torch.float64), complex(0.5),
    ))  # fmt: skip


def any_wrong_value(choices: Choices) -> Any:
    """Return a value of a type that most arguments do not have."""
    return choices.choice(_WRONG_VALUES)


def any_wrong_input(choices: Choices, input: Tensor) -> Any:
    """Return what is no dense tensor of numbers, in place of an input."""
    kind = choices.randrange(6)
    if kind == 0 and input.dim() and input.dtype in FLOATS:
        return input.detach().to_sparse()
    if kind == 1:
        return input.detach().to("meta")
    if kind == 2:
        return torch.randn(3, 4, dtype=torch.complex64, generator=choices.torch).conj()
    if kind == 3 and input.dtype in FLOATS:
        return input.detach().double().tolist()
    return any_wrong_value(choices)


def any_key(choices: Choices) -> Any:
    """Return a key of each kind, or None; also what is none."""
    kind = choices.random()
    if kind < 0.2:
        return None
    if kind < 0.55:
        return Key(choices.choice((*_SEEDS, choices.getrandbits(64))))
    if kind < 0.85:
        return torch.tensor(choices.choice((0, -1, 2**63 - 1, -(2**63), choices.getrandbits(62))))
    if kind < 0.95:
        return Key(choices.getrandbits(64)).fold_in(choices.choice(("a", "", "é", 3, -1, 2**70)))
    return choices.choice((7, "k", torch.tensor(3, dtype=torch.int32), torch.tensor([3]), 3.5))


def any_place(choices: Choices, shape: Sequence[int], *, shared: bool = True) -> dict[str, Any]:
    """Return arguments that say where a tensor lies: shared dimensions, a window, ids of samples."""
    place: dict[str, Any] = {}
    if shared and choices.chance(0.35):
        place["shared_dims"] = _any_dims(choices, len(shape))
    if choices.chance(0.35):
        window = _any_window(choices, shape)
        if window is not None:
            place["window"] = window
    if choices.chance(0.3):
        place |= _any_ids(choices, shape)
        _fit_window_to_ids(choices, place, shape)
    return place


def _any_dims(choices: Choices, rank: int) -> Any:
    dims = [dim if choices.chance(0.7) else dim - rank for dim in range(rank) if choices.chance(0.4)]
    kind = choices.random()
    if kind < 0.1:
        return choices.choice(([*dims, rank], dims + dims, 1, [0.0]))
    return range(min(rank, 1), rank) if kind < 0.3 else choices.choice((tuple, list))(dims)


def _any_window(choices: Choices, shape: Sequence[int]) -> Any:
    offset = [choices.choice((0, 0, 1, 5, 2**20, 2**31, 2**33)) if choices.chance(0.7) else 0 for _ in shape]
    sizes = [
        start + size + choices.choice((0, 0, 1, 7, 2**16, 2**31, 2**40))
        for start, size in zip(offset, shape, strict=True)
    ]
    if shape and choices.chance(0.15):
        sizes[0] = choices.choice((2**61, 2**62, 2**63 - 1, 2**63, 2**64))
        offset[0] = choices.choice((0, sizes[0] - shape[0], 2**60))
    if choices.chance(0.05):
        sizes = sizes[:-1] or [1]
    try:
        return Window(tuple(sizes), tuple(offset))
    except (TypeError, ValueError):  # a window that cannot be made is no argument
        return None


def _any_ids(choices: Choices, shape: Sequence[int]) -> dict[str, Any]:
    dim = choices.randrange(-len(shape), len(shape)) if shape else 0
    count = (shape[dim] if shape else 1) + (1 if choices.chance(0.05) else 0)
    limit = count + 3 if choices.chance(0.5) else choices.choice((2**20, 2**31, 2**33, 2**45, 2**62, 2**63 - 1))
    ids = torch.tensor([choices.randrange(limit) for _ in range(count)], dtype=torch.int64)
    kind = choices.random()
    if kind < 0.05 and count:
        ids[0] = -1
    elif kind < 0.08:
        ids = ids.int()
    elif kind < 0.25:
        ids = torch.stack([ids, ids], 1)[:, 0]
    return {"sample_ids": ids, "sample_dim": dim}


def _fit_window_to_ids(choices: Choices, place: dict[str, Any], shape: Sequence[int]) -> None:
    """Make most windows large enough for the ids, without an offset along their dimension."""
    if "window" in place and shape and choices.chance(0.7):
        sizes, offset = list(place["window"].shape), list(place["window"].offset)
        dim = place["sample_dim"] % len(shape)
        if dim < len(sizes):
            offset[dim], sizes[dim] = 0, min(max([0, *place["sample_ids"].tolist()]) + 1, 2**63 - 1)
            place["window"] = Window(tuple(sizes), tuple(offset))
