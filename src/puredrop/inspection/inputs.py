"""The arguments of a model's call, from inputs in any form that users have them in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Module

__all__ = ["call_arguments", "check_model"]

_CONTAINERS = ("list", "tuple", "sequence", "iterable")


def check_model(model: Any) -> None:
    """Raise TypeError unless an argument is a module."""
    if not isinstance(model, Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")


def call_arguments(
    model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], caller: str = "sites"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and named arguments to call a model with.

    Several inputs, or named ones, are passed as they are, and so are all of a TorchScript module. One object alone is
    read as follows:

    - a DataLoader gives its first batch;
    - a mapping is passed by keywords if the forward takes its names, without those that the forward does not take;
    - a tuple or list is passed as positional arguments, without trailing ones that the forward does not take, such as
      the targets of a batch `[x, y]`; it stays whole if the forward's first parameter is annotated as a list or tuple.

    Args:
        model: the module to be called.
        args, kwargs: the inputs, as given by the user.
        caller: name of the function that the user called, for errors.

    Raises:
        TypeError: if there are no inputs and the forward needs some.
        ValueError: if the DataLoader has no batches.
    """
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # a TorchScript module's forward has none
        return args, kwargs
    if not args and not kwargs and not _binds(signature, (), {}):
        raise TypeError(
            f"there are no inputs, and the model's forward{signature} needs some; give them after the model, such as "
            f"{caller}(model, x), or give a DataLoader"
        )
    if len(args) != 1 or kwargs:
        return args, kwargs
    value = args[0]
    if isinstance(value, torch.utils.data.DataLoader):
        with torch.random.fork_rng():  # a loader draws a seed
            batch = next(iter(value), None)
        if batch is None:
            raise ValueError("the DataLoader has no batches; expected one at least")
        return call_arguments(model, (batch,), {})
    if isinstance(value, Mapping):
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
        named = {name: value[name] for name in value if takes_all or name in signature.parameters}
        return ((), named) if named and _binds(signature, (), named) else (args, {})
    if type(value) not in (tuple, list) or _takes_container(signature):  # a PackedSequence is a named tuple
        return args, {}
    items = tuple(value)
    while len(items) > 1 and not _binds(signature, items, {}):
        items = items[:-1]
    return items, {}


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function of this signature takes the arguments."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _takes_container(signature: inspect.Signature) -> bool:
    """Return whether the first parameter is annotated as a list or tuple."""
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.annotation is first.empty:
        return False
    annotation = first.annotation if isinstance(first.annotation, str) else str(first.annotation)
    return any(annotation.lower().removeprefix("typing.").startswith(name) for name in _CONTAINERS) or (
        first.annotation in (list, tuple)
    )
