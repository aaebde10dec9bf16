"""Operators that apply masks, and the choice between the reference, the compiled kernel and torch's dispatcher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop.ops import _eager, _fused, _operator
from puredrop.ops._arguments import (
    Place,
    Window,
    as_sizes,
    check_dtype,
    check_switch,
    check_tensor,
    check_window,
    place_of,
)
from puredrop.ops._eager import transparent
from puredrop.ops._kernel import check_overlap
from puredrop.ops._shards import is_spread, over_shards
from puredrop.ops._source import (
    PACKED,
    AnyKey,
    DropoutOverride,
    KeySource,
    SiteKeySource,
    active,
    resolve_key,
    with_sample_dim,
)
from puredrop.ops._symbols import has_symbol, recorded_call, recorded_module
from puredrop.ops._values import as_rate, check_finite_noise, readable_from
from puredrop.rng import Key, as_key_number, as_key_tensor

__all__ = [
    "AnyKey",
    "PACKED",
    "DropoutOverride",
    "SiteKeySource",
    "Place",
    "KeySource",
    "Window",
    "with_sample_dim",
    "as_rate",
    "as_sizes",
    "bias_dropout_add",
    "check_dtype",
    "check_finite_noise",
    "check_overlap",
    "check_switch",
    "check_tensor",
    "check_window",
    "dropout",
    "gaussian_dropout",
    "gelu_dropout",
    "has_symbol",
    "is_spread",
    "active",
    "place_of",
    "readable_from",
    "recorded_call",
    "recorded_module",
    "relu_dropout",
    "resolve_key",
    "transparent",
]

Rate = float | Tensor


def _are_plain(key: Key | Tensor | None, p: Rate, place: Place) -> bool:
    """Return whether key, rate and ids are numbers, or tensors whose values can be read at no cost."""
    return (
        (key is None or isinstance(key, Key) or _eager.is_plain(key))
        and (not isinstance(p, Tensor) or _eager.is_plain(p))
        and (place.sample_ids is None or _eager.is_plain(place.sample_ids))
    )


def dropout(input: Tensor, key: AnyKey, p: Rate, place: Place, inplace: bool = False) -> Tensor:
    """Drop elements of a tensor, differentiable any number of times.

    Args:
        input: float tensor of any shape.
        key: `Key`, 0-d int64 tensor or key source; None asks the active source, else draws a key from torch's generator
            of the input's device.
        p: drop probability in [0, 1]. A 0-d float tensor is data: another value needs no recompilation.
        place: place of the input in its logical tensor.
        inplace: write the result into the input.

    Returns:
        A new tensor like the input, or the input.
    """
    known, place = resolve_key("dropout", input, key, place)
    if _eager.is_plain(input) and _are_plain(known, p, place):
        return _eager.dropout(input, as_key_number(known), float(p), place, inplace)
    if isinstance(known, DropoutOverride):
        return known.drop(input, p, place, inplace)
    output = _applied(_operator.dropout, input, known, p, place)
    return input.copy_(output) if inplace else output


def _applied(operator: _operator.Operator, input: Tensor, key: Key | Tensor | None, p: Rate, place: Place) -> Tensor:
    """Apply an operator to a tensor of any kind, through torch's dispatcher."""
    # On the CPU whatever the default device is: there its value is known, and on a GPU nothing waits for it.
    rate = p if isinstance(p, Tensor) else torch.scalar_tensor(p, dtype=torch.float64, device="cpu")
    rate = readable_from("p", rate, input)
    number = readable_from("key", as_key_tensor(key, input.device), input)
    if place.sample_ids is not None:
        readable_from("sample_ids", place.sample_ids, input)
    if is_spread(input):
        return over_shards(lambda local, part: operator(local, number, rate, part), input, place)
    return operator(input, number, rate, place)


def gaussian_dropout(input: Tensor, key: AnyKey, p: Rate, place: Place) -> Tensor:
    """Multiply by noise of mean 1 and variance p/(1-p); arguments as `dropout`, with p below 1."""
    known, place = resolve_key("gaussian_dropout", input, key, place)
    return _applied(_operator.gaussian_dropout, input, known, p, place)


def relu_dropout(input: Tensor, key: AnyKey, p: Rate, place: Place, inplace: bool = False) -> Tensor:
    """Compute `dropout(relu(input))`; arguments as `dropout`."""
    known, place = resolve_key("dropout", input, key, place)
    if _fused.fits(place, input) and _are_plain(known, p, place) and (not inplace or _eager.may_write(input)):
        return _fused.relu_dropout(input, as_key_number(known), float(p), place, inplace)
    output = dropout(torch.relu(input), known, p, place)
    return input.copy_(output) if inplace else output


def gelu_dropout(input: Tensor, key: AnyKey, p: Rate, place: Place, approximate: str = "none") -> Tensor:
    """Compute `dropout(gelu(input))`; arguments as `dropout` and as torch's gelu."""
    known, place = resolve_key("dropout", input, key, place)
    if approximate == "none" and _fused.fits(place, input) and _are_plain(known, p, place):
        return _fused.gelu_dropout(input, as_key_number(known), float(p), place)
    return dropout(F.gelu(input, approximate=approximate), known, p, place)


def bias_dropout_add(
    input: Tensor, bias: Tensor | None, residual: Tensor, key: AnyKey, p: Rate, place: Place
) -> Tensor:
    """Compute `dropout(input + bias) + residual`; arguments as `dropout`, bias and residual broadcast to the input."""
    known, place = resolve_key("dropout", input, key, place)
    operands = (residual,) if bias is None else (residual, bias)
    if _fused.fits(place, input, *operands) and _are_plain(known, p, place):
        return _fused.bias_dropout_add(input, bias, residual, as_key_number(known), float(p), place)
    return dropout(input if bias is None else input + bias, known, p, place) + residual
