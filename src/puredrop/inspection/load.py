"""A model and its inputs, named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

__all__ = ["find", "load", "made"]


def find(spec: str, name: str) -> Callable[[], Any]:
    """A function named "module:factory", the module importable from the working folder.

    Args:
        spec: what was given.
        name: what errors call it.

    Raises:
        ValueError: with one line that names what is wrong.
    """
    module_name, colon, function = spec.partition(":")
    if not (module_name and colon and function):
        raise ValueError(f"{name} is {spec!r}; expected module:factory, such as mymodels:small")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's file raises is the answer
        raise ValueError(f"{name} {spec}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{name} {spec}: {module_name} has no function or class {function!r}")
    factory: Callable[[], Any] = found
    return factory


def made(spec: str) -> tuple[Module, list[Any]]:
    """The model that a factory makes, and the inputs that it may give with it; arguments and errors as `load`."""
    given = find(spec, "MODEL")()
    model, *inputs = given if isinstance(given, tuple) else (given,)
    if not isinstance(model, Module):
        raise ValueError(f"MODEL {spec}: the factory gave {type(model).__name__}; expected a torch.nn.Module")
    return model, inputs


def load(spec: str, shapes: Sequence[tuple[int, ...]] = ()) -> tuple[Module, tuple[Any, ...], dict[str, Any]]:
    """The model that a factory makes, and what to call it with.

    Args:
        spec: "module:factory"; the factory returns the model, or the model and its inputs: a tensor, a tuple, a dict.
        shapes: sizes of float inputs, where the factory returns none.

    Raises:
        ValueError: with one line that names what is wrong.
    """
    model, inputs = made(spec)
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
