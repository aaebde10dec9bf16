"""Models and inputs that are named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

__all__ = ["find", "load", "make_model"]


def find(spec: str, name: str) -> Callable[[], Any]:
    """Return the function that "module:factory" names; the module is importable from the working folder.

    Args:
        spec: the text, such as "mymodels:small".
        name: name of the argument, for errors.

    Raises:
        ValueError: if there is no such module or function; the message is one line.
    """
    module_name, colon, function = spec.partition(":")
    if not (module_name and colon and function):
        raise ValueError(f"{name} is {spec!r}; expected module:factory, such as mymodels:small")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's file may raise anything
        raise ValueError(f"{name} {spec}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    value = getattr(module, function, None)
    if not callable(value):
        raise ValueError(f"{name} {spec}: {module_name} has no function or class {function!r}")
    factory: Callable[[], Any] = value
    return factory


def make_model(spec: str) -> tuple[Module, list[Any]]:
    """Return the model of a factory, and the inputs that it may return too; arguments and errors as `load`."""
    result = find(spec, "MODEL")()
    model, *inputs = result if isinstance(result, tuple) else (result,)
    if not isinstance(model, Module):
        raise ValueError(f"MODEL {spec}: the factory gave {type(model).__name__}; expected a torch.nn.Module")
    return model, inputs


def load(spec: str, shapes: Sequence[tuple[int, ...]] = ()) -> tuple[Module, tuple[Any, ...], dict[str, Any]]:
    """Return the model of a factory, and the arguments of its call.

    Args:
        spec: "module:factory"; the factory returns the model, or the model and its inputs: a tensor, a tuple, a dict.
        shapes: shapes of random float inputs, if the factory returns none.

    Raises:
        ValueError: if the factory does not exist or gives no model, or there are no inputs; the message is one line.
    """
    model, inputs = make_model(spec)
    if not inputs and not shapes:
        raise ValueError(
            f"MODEL {spec}: no inputs to run it on; give --input 1,3,224,224, or return (model, inputs) from {spec}"
        )
    if not inputs:
        return model, tuple(torch.randn(shape) for shape in shapes), {}
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return model, (), dict(inputs[0])
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        return model, tuple(inputs[0]), {}
    return model, tuple(inputs), {}
