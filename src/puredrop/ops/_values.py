"""Values of rates, ids and sizes: checked at once where they can be read, else by an assertion on the device."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from puredrop._torch import assert_on_device, is_batched

__all__ = [
    "LIMIT",
    "as_rate",
    "check_finite_noise",
    "check_ids_in_range",
    "check_rate_value",
    "check_size",
    "is_readable",
    "readable_from",
]

LIMIT = 2**63
"""Every logical index lies below this number."""


def as_rate(p: float | Tensor) -> float | Tensor:
    """Check a drop probability, as far as that needs no synchronisation.

    Args:
        p: a number, or a 0-d float tensor.

    Returns:
        The same number or tensor; a number of another type than Python's, such as NumPy's or a fraction, as a float.

    Raises:
        TypeError: if p is neither a number nor a floating-point tensor.
        ValueError: if p is NaN or outside [0, 1] (a tensor's value is read in eager mode on the CPU only); if p is a
            tensor that is not 0-d or requires a gradient.
    """
    if type(p) is float and 0.0 <= p <= 1.0:
        return p  # nearly every call
    if isinstance(p, Tensor):
        _check_rate_tensor(p)
        if is_readable(p):
            check_rate_value(p.item())
        return p
    if not isinstance(p, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"p is {p!r}; expected a number in [0, 1] or a 0-d float tensor, the probability of a drop")
    check_rate_value(p)
    return p if isinstance(p, (int, float, torch.SymFloat, torch.SymInt)) else float(p)


def check_rate_value(value: float) -> None:
    """Check that a number is a drop probability.

    Raises:
        ValueError: if the number is NaN or outside [0, 1].
    """
    if not 0.0 <= value <= 1.0:
        # The first words are torch's own, for code that matches them.
        raise ValueError(
            f"dropout probability has to be between 0 and 1, but got {value}: "
            "p is the share of elements dropped (for 30 % pass p=0.3)"
        )


def check_finite_noise(p: float) -> None:
    """Check that Gaussian noise of a rate has a finite variance.

    Raises:
        ValueError: if the rate is 1.
    """
    if p == 1:
        raise ValueError(f"p is {p}; gaussian_dropout expects p below 1, for its noise has variance p/(1-p)")


def _check_rate_tensor(p: Tensor) -> None:
    if not p.is_floating_point():
        raise TypeError(f"p is a tensor of dtype {p.dtype}; expected a floating-point tensor (try p.double())")
    if p.dim() != 0:
        raise ValueError(f"p is a tensor of shape {tuple(p.shape)}; expected a 0-d tensor, one rate per call")
    if p.requires_grad:
        raise ValueError("p requires a gradient, but a mask has none with respect to its rate; pass p.detach()")


def is_readable(tensor: Tensor) -> bool:
    """Return whether reading a tensor's values needs no graph break, no synchronisation and no functorch wrapper."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not is_batched(tensor)
    )


def readable_from(name: str, value: Tensor, input: Tensor) -> Tensor:
    """Return a key or a rate on a device whose memory the input's operator reads: the CPU, or the input's device.

    Raises:
        ValueError: if the value is on the meta device, and so unknown, but the input is not.
    """
    if value.device == input.device or value.device.type == "cpu":
        return value
    if value.device.type == "meta":
        raise ValueError(
            f"{name} is a tensor on the meta device, which holds no value; expected one on {input.device}, the "
            "input's device (is it made under a default device?)"
        )
    return value.to(input.device)


def check_ids_in_range(ids: Tensor, logical: Sequence[int], shared_dims: tuple[int, ...], dim: int) -> None:
    """Check the values of ids: on the CPU at once, elsewhere by an assertion on the device, which synchronises nothing.

    Args:
        ids: int64 tensor (n,).
        logical: sizes of the logical tensor.
        shared_dims, dim: dimensions as in `Place`.

    Raises:
        ValueError: if an id is negative, or lies beyond the logical tensor.
    """
    if ids.numel() == 0 or ids.device.type == "meta":
        return
    # Along the outermost dimension every id is a row of its own. Further in, an id beyond the size would run into
    # another sample's elements and silently share their mask.
    outer = math.prod(size for d, size in enumerate(logical[:dim]) if d not in shared_dims)
    inner = math.prod(size for d, size in enumerate(logical) if d > dim and d not in shared_dims)
    if ids.device.type != "cpu":
        end = min(LIMIT // max(inner, 1), logical[dim] if outer > 1 else LIMIT)
        assert_on_device(((ids >= 0) & (ids <= end - 1)).all(), "sample_ids holds an id outside of its dimension")
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < 0:
        raise ValueError(f"sample_ids holds {low}; expected no negative id")
    if outer > 1 and high >= logical[dim]:
        raise ValueError(
            f"sample_ids holds {high}, dimension {dim} has logical size {logical[dim]}; expected ids below it: "
            f"give a window whose shape[{dim}] exceeds every id"
        )
    if (high + 1) * inner > LIMIT:
        raise ValueError(f"sample_ids holds {high}, {inner} elements per sample; expected indices below 2^63")


def check_size(logical: Sequence[int], shared_dims: tuple[int, ...]) -> None:
    """Check that every element of a logical tensor has an index below 2^63.

    Raises:
        ValueError: if the tensor is larger.
    """
    size = math.prod(size for d, size in enumerate(logical) if d not in shared_dims)
    if size >= LIMIT:
        raise ValueError(f"window.shape is {tuple(logical)}; expected a logical size below 2^63, got {size}")
