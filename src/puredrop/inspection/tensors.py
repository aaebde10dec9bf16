"""Tensors in the arguments and results of a model: in containers, and in containers of these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

__all__ = ["tensors_in", "with_tensors"]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in a tensor, or in mappings, tuples and lists of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with each tensor of `tensors_in` changed, in containers of the same classes.

    Args:
        value: a tensor, a container, or anything else, which stays as it is.
        change: function from a tensor to what takes its place.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [with_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        new: Any = copy.copy(value) if isinstance(value, MutableMapping) else {}
        for name, item in value.items():
            new[name] = with_tensors(item, change)
        return new
    return value
