"""Calls with symbols of torch.fx in place of tensors, which are recorded as one node instead of executed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.nn import Module

from puredrop.ops._arguments import check_tensor
from puredrop.ops._source import KeySource

__all__ = ["has_symbol", "recorded_call", "recorded_module"]


def has_symbol(*values: Any) -> bool:
    """Return whether a value, or one in a tuple or list, is a symbol of torch.fx."""
    return _tracer(values) is not None


def recorded_call(function: Callable[..., Tensor], arguments: Mapping[str, Any]) -> Tensor:
    """Record a call of one of our functions, of whose tensors one is none.

    Args:
        function: the function.
        arguments: all of its arguments by name, in order.

    Returns:
        The symbol of the result.

    Raises:
        TypeError: if no argument is a symbol.
        RuntimeError: if the key belongs to a pinned model.
    """
    tracer = _tracer(arguments.values())
    input, *others = arguments.items()
    if tracer is None:
        for name, value in arguments.items():
            check_tensor(name, value)  # the first that is no tensor
    assert tracer is not None
    _refuse_source(function.__name__, arguments.get("key"), arguments.get("dropout_key"))
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    named = {name: value for name, value in others if not _is_default(value, defaults[name])}
    node: Tensor = tracer.create_proxy("call_function", function, input[1:], named)
    return node


def recorded_module(module: Module, key: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Record a call of one of our layers, as torch.fx does with torch's own.

    Args:
        module: the layer.
        key: its key.
        arguments, named: the arguments of its forward.

    Returns:
        The symbol of the result; None if no argument is a symbol, or if the layer itself is what torch.fx traces.

    Raises:
        RuntimeError: if the key belongs to a pinned model.
    """
    tracer = _tracer((*arguments, *named.values()))
    if tracer is None or getattr(tracer, "root", None) is module:
        return None
    _refuse_source(type(module).__name__, key)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, dict(named))


def _tracer(values: Iterable[Any]) -> Any:
    """Return the tracer of the first symbol among values and the tuples and lists in them, None without a symbol."""
    for value in values:
        found = value.tracer if isinstance(value, fx.Proxy) else None
        if found is None and isinstance(value, (tuple, list)):
            found = _tracer(value)
        if found is not None:
            return found
    return None


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (bool, int, float, str, tuple)) and value == default)


def _refuse_source(name: str, *keys: Any) -> None:
    if any(isinstance(key, KeySource) for key in keys):
        raise RuntimeError(
            f"torch.fx traces {name} of a pinned model, but the graph module that it makes would not be pinned; trace "
            "the model before puredrop.reproducible and pin the graph module, or call run.release() first"
        )
