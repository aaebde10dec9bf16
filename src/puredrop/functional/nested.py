"""Calls whose input is a nested tensor, or a symbol of torch.fx, which our functions hand over before anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from puredrop import ops

__all__ = ["refuse_nested", "special_call"]


def special_call(
    function: Callable[..., Tensor],
    arguments: Mapping[str, Any],
    undropped: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Make a call whose input is nested or no tensor at all.

    A nested tensor passes through as it is where nothing is dropped. Elements of a jagged one are dropped as those of a
    packed sequence are: the logical index is that of its values.

    Args:
        function: the function.
        arguments: all of its arguments by name, in order.
        undropped: function that computes the result where nothing is dropped; None where that is the input.

    Raises:
        TypeError: for an input that is neither a tensor nor a symbol.
        NotImplementedError: for other nested tensors.
    """
    input = next(iter(arguments.values()))
    if not isinstance(input, Tensor) or not input.is_nested:
        return ops.recorded_call(function, arguments)
    rate = ops.as_rate(arguments["p"])
    ops.check_switch("training", arguments["training"])
    if not arguments["training"] or (not isinstance(rate, Tensor) and rate == 0):
        return input if undropped is None else undropped()
    is_placed = arguments["window"] is not None or arguments["sample_ids"] is not None
    if function.__name__ != "dropout" or is_placed or tuple(arguments["shared_dims"]) or not _is_packed(input):
        refuse_nested(function.__name__, input)
    return _packed(function, input, rate, arguments["inplace"], arguments["key"])


def refuse_nested(name: str, input: Tensor) -> None:
    """Refuse a nested tensor.

    Raises:
        NotImplementedError: if the input is nested.
    """
    if isinstance(input, Tensor) and input.is_nested:
        raise NotImplementedError(
            f"{name}: input is a nested tensor of layout {input.layout}, in which an element has no index of its own "
            "that a mask could follow; pad it, torch.nested.to_padded_tensor(input, 0.0) (single elements of a jagged "
            "tensor that is contiguous can be dropped, by dropout without window, sample_ids and shared_dims)"
        )


def _is_packed(input: Tensor) -> bool:
    """Return whether a nested tensor is one run of rows, sample after sample."""
    return input.layout == torch.jagged and input.is_contiguous()


def _packed(function: Callable[..., Tensor], input: Any, rate: float | Tensor, inplace: bool, key: Any) -> Tensor:
    if key is None and ops.active.source is not None:
        raise NotImplementedError(
            "dropout: input is a nested tensor, and the call is in a pinned model or an ensemble, whose samples its "
            "values do not show; use a layer, puredrop.nn.Dropout, or pass a key"
        )
    values = function(input.values(), rate, True, inplace, key=ops.with_sample_dim(key, ops.PACKED))
    output: Tensor = input if inplace else torch.nested.nested_tensor_from_jagged(values, input.offsets())
    return output
