"""Reads of attributes in a forward, observed on a duplicate of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Module

from puredrop.inspection.duplicate import duplicate, strays_refused
from puredrop.inspection.observation import undisturbed

__all__ = ["unread"]


def unread(
    model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], attributes: Iterable[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the attributes that a forward in training mode does not read; those that cannot be observed count as read.

    Args:
        model: the model, which is not changed.
        args, kwargs: the arguments of its forward.
        attributes: paths of modules, each with an attribute's name.
    """
    with undisturbed(model):
        watched = duplicate(model)
        watched.train()
        remaining: set[tuple[str, str]] = set()
        for path, name in attributes:
            if _observe(watched.get_submodule(path), path, name, remaining):
                remaining.add((path, name))
        if remaining:
            with strays_refused(model):
                watched(*args, **kwargs)
    return remaining


def _observe(module: Module, path: str, name: str, remaining: set[tuple[str, str]]) -> bool:
    """Give a module of a duplicate a class of its own, whose property removes an attribute that is read."""
    kind = type(module)
    if type(kind) is not type or any("__init_subclass__" in vars(parent) for parent in kind.__mro__[:-1]):
        return False  # the user's code would learn of the class

    def read(self: Module) -> Any:
        remaining.discard((path, name))
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(name) from None

    def write(self: Module, value: Any) -> None:
        vars(self)[name] = value

    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, name: property(read, write)}
    try:
        module.__class__ = type(kind.__name__, (kind,), named)
    except TypeError:  # another layout
        return False
    return True
