"""The mask contract in plain torch integer arithmetic, on any device: the specification, written to be read.

Every other backend is judged by equality with this file: masks bit for bit, values to one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from puredrop.ops._arguments import Place
from puredrop.rng import DRAWS, NORMAL, philox

__all__ = ["digit", "dropout", "gaussian_dropout", "logical_index", "normal", "rate_and_digits", "threshold"]

_LOW = 0xFFFFFFFF
_PLANES = 8
_ABOVE_EVERY_BYTE = 256

Digits = Sequence[int] | Sequence[Tensor]


def threshold(p: float) -> int:
    """Return K = round-half-even(p * 2^64), exact: an element is dropped if its 64-bit uniform number is below K."""
    return round(math.ldexp(p, 64))  # ldexp only moves the exponent; Python rounds a float half to even, exactly


def rate_and_digits(p: Tensor) -> tuple[Tensor, Digits]:
    """Return the realised rate K / 2^64 and K's base-256 digits, most significant first.

    Args:
        p: 0-d float tensor in [0, 1].

    Returns:
        The rate as a 0-d float64 tensor (exact: K has at most 53 significant bits), and eight digits: integers where
        p is on the CPU, else 0-d tensors, so that nothing synchronises. For p = 1 the first digit is 256, above
        every byte.
    """
    if p.device.type == "cpu":
        k = threshold(p.item())
        rate = torch.tensor(k / 2**64, dtype=torch.float64, device="cpu")
        return rate, [k >> 56, *(k >> (56 - 8 * d) & 255 for d in range(1, _PLANES))]
    # The same with tensors. Rounding first leaves a multiple of 2^-64, and then every step below is exact.
    rate = torch.round(p.double() * 2.0**64) * 2.0**-64
    remainder, digits = rate, []
    for _ in range(_PLANES):
        # The first digit may reach 256 (p = 1); all further digits are 0 then.
        digits.append(torch.floor(remainder * 256))
        remainder = remainder * 256 - digits[-1]
    return rate, digits


def _bytes(key: Tensor | int, block: Tensor, plane: int) -> Tensor:
    """Return the 16 bytes of each Philox block: (...) int64 block numbers -> (..., 16) uint8."""
    low, high = block & _LOW, (block >> 32) & _LOW
    words = philox(key, (low, high, torch.full_like(low, plane), torch.full_like(low, DRAWS)))
    pairs = torch.stack([words[0] | words[1] << 32, words[2] | words[3] << 32], dim=-1)
    return pairs.view(torch.uint8)  # little-endian, as every platform of torch's wheels is


def digit(key: Tensor | int, index: Tensor, plane: int) -> Tensor:
    """Return digit U_plane of the uniform number of each logical index.

    Args:
        key: 0-d int64 tensor or int.
        index: int64 tensor of logical indices, modulo 2^64.
        plane: number of the digit, 0 (most significant) to 7.

    Returns:
        uint8 tensor of the index's shape.
    """
    block = (index >> 4) & (2**60 - 1)  # an index beyond 2^63 reads as negative: shift in zeros, not the sign
    return _bytes(key, block, plane).gather(-1, (index & 15).unsqueeze(-1)).squeeze(-1)


def _digit_of_run(key: Tensor | int, count: int, plane: int, device: torch.device) -> Tensor:
    """Return `digit` for the logical indices 0 ... count - 1, where one Philox call serves 16 elements.

    Measured: 14 times faster than `digit` (docs/masks.md, 'What it costs').
    """
    blocks = torch.arange(-(-count // 16), device=device)
    return _bytes(key, blocks, plane).flatten()[:count]


def _below(draw: Callable[[int, Tensor | None], Tensor], digits: Digits) -> Tensor:
    """Return whether (U0 ... U7) < (P0 ... P7), lexicographically.

    Args:
        draw: (plane, where) -> that digit of the elements at the flat positions `where`, or of all elements for None.
        digits: digits of the threshold.
    """
    # No number is below trailing zeros, so a tie before them keeps the element (p = 0.5, 0.25, ...).
    known = not isinstance(digits[0], Tensor)
    planes = max((d + 1 for d in range(_PLANES) if digits[d]), default=1) if known else _PLANES
    leading = draw(0, None)
    below, tied = leading < digits[0], leading == digits[0]
    if leading.device.type != "cpu" or torch.compiler.is_compiling():
        # Every digit of every element: a search for ties would synchronise a GPU, and a compiler cannot follow it.
        for plane in range(1, planes):
            u = draw(plane, None)
            below, tied = below | (tied & (u < digits[plane])), tied & (u == digits[plane])
        return below
    where = tied.nonzero().flatten()  # 1 in 256, then 1 in 65 536, ...
    for plane in range(1, planes):
        if where.numel() == 0:
            break
        u = draw(plane, where)
        below[where] = u < digits[plane]
        where = where[u == digits[plane]]
    return below


def logical_index(shape: Sequence[int], place: Place, device: torch.device) -> Tensor:
    """Return the logical index of every element: row-major over the logical sizes, whatever the memory format.

    Args:
        shape: sizes of the tensor.
        place: place of the tensor in its logical tensor.
        device: device of the result.

    Returns:
        int64 tensor of the shape with 1 in every shared dimension, so that it broadcasts over them.
    """
    index = torch.zeros((), dtype=torch.int64, device=device)
    stride = 1
    for d in reversed(range(len(shape))):
        if d in place.shared_dims:
            position, size = torch.zeros(1, dtype=torch.int64, device=device), 1
        else:
            position = torch.arange(shape[d], device=device)
            size = shape[d] if place.window_shape is None else place.window_shape[d]
            if place.sample_ids is not None and d == place.sample_dim:
                position = place.sample_ids.to(device)
            elif place.window_offset is not None:
                position = position + place.window_offset[d]
        index = index + (position * stride).view(-1, *[1] * (len(shape) - 1 - d))
        stride *= size
    return index


def _dropped(key: Tensor | int, digits: Digits, shape: Sequence[int], place: Place, device: torch.device) -> Tensor:
    """Return the dropped elements as bool, of the shape with 1 in every shared dimension."""
    drawn = [1 if d in place.shared_dims else size for d, size in enumerate(shape)]
    if isinstance(digits[0], int) and digits[0] == _ABOVE_EVERY_BYTE:
        return torch.ones(drawn, dtype=torch.bool, device=device)
    is_run = place.window_shape is None and place.sample_ids is None
    index = None if is_run else logical_index(shape, place, device).flatten()

    def draw(plane: int, where: Tensor | None) -> Tensor:
        if where is not None:
            return digit(key, where if index is None else index[where], plane)
        return _digit_of_run(key, math.prod(drawn), plane, device) if index is None else digit(key, index, plane)

    return _below(draw, digits).view(drawn)


def dropout(input: Tensor, key: Tensor, p: Tensor, place: Place) -> Tensor:
    """Drop by selection: y = dropped ? +0 : x * s with s = 1 / (1 - rate), so that a dropped NaN or Inf gives 0.

    Args:
        input: float16, bfloat16, float32 or float64 tensor of any shape and strides.
        key: 0-d int64 tensor.
        p: 0-d float tensor in [0, 1].
        place: place of the input in its logical tensor.

    Returns:
        A new tensor with the input's shape, dtype and memory format.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014).
    """
    rate, digits = rate_and_digits(p)
    number = int(key.item()) if key.device.type == "cpu" else key
    dropped = _dropped(number, digits, input.shape, place, input.device)

    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = (1 / (1 - rate)).to(wide)
    scaled = (input.to(wide) * scale).to(input.dtype)
    output = torch.empty_like(input)
    output.copy_(torch.where(dropped, torch.zeros((), dtype=input.dtype, device=input.device), scaled))
    return output


def normal(key: Tensor | int, shape: Sequence[int], place: Place, device: torch.device) -> Tensor:
    """Draw standard normal noise (Box and Muller 1958): one Philox call of domain 2 serves four elements.

    Args:
        key: 0-d int64 tensor or int.
        shape: sizes of the tensor.
        place: place of the tensor in its logical tensor.
        device: device of the result.

    Returns:
        float64 tensor, of the shape with 1 in every shared dimension.
    """
    drawn = [1 if d in place.shared_dims else size for d, size in enumerate(shape)]
    count = math.prod(drawn)
    is_run = place.window_shape is None and place.sample_ids is None
    if is_run:
        block = torch.arange(-(-count // 4), device=device)
    else:
        index = logical_index(shape, place, device).flatten()
        block = (index >> 2) & (2**62 - 1)
    low, high = block & _LOW, (block >> 32) & _LOW
    words = philox(key, (low, high, torch.zeros_like(low), torch.full_like(low, NORMAL)))
    lanes = []
    for even, odd in (words[:2], words[2:]):
        radius = torch.sqrt(-2 * torch.log((even + 1).double() * 2.0**-32))
        angle = odd.double() * (2 * math.pi * 2.0**-32)
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    noise = torch.stack(lanes, dim=-1)
    noise = noise.flatten()[:count] if is_run else noise.gather(-1, (index & 3).unsqueeze(-1))
    return noise.view(drawn)


def gaussian_dropout(input: Tensor, key: Tensor, p: Tensor, place: Place) -> Tensor:
    """Multiply by 1 + sqrt(p / (1 - p)) z, with z standard normal: the mean and variance of dropout's own noise.

    Arguments and result as `dropout`; p below 1.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014), 10.
    """
    rate, _ = rate_and_digits(p)
    number = int(key.item()) if key.device.type == "cpu" else key
    noise = 1 + torch.sqrt(rate / (1 - rate)) * normal(number, input.shape, place, input.device)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = torch.empty_like(input)
    output.copy_((input.to(wide) * noise.to(wide)).to(input.dtype))
    return output
