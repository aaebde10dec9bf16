"""Numbers and flags that a model shares with its duplicates, saved and restored."""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["SavedScalars"]

_PLAIN = (bool, int, float, complex, str, type(None))
_NOT_FOLLOWED = (Tensor, Module, type, types.ModuleType, types.FunctionType)
_TABLES = frozenset(name for name, value in vars(Module()).items() if isinstance(value, (dict, set)))
"""Attributes in which torch keeps a module's parts and hooks."""
_LIBRARIES = ("torch.", "puredrop.")
"""Packages whose objects keep the state of runs, also of those in other threads."""
_DEEPEST, _LONGEST, _MOST = 4, 1000, 10_000
"""The depth to which objects are followed, the most entries of a container, as a longer one holds data, and the most
objects: a trainer that a model knows leads to very many."""
_ABSENT = object()


class SavedScalars:
    """Numbers, flags and texts in objects that a model and its duplicates share, such as a rate in a configuration.

    A duplicate has attributes of its own, but refers to the same objects, and its classes are the model's: a forward
    that writes there changes the user's model.

    Args:
        model: the model whose objects are saved.
    """

    def __init__(self, model: Module) -> None:
        self._items: list[tuple[Any, Any, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._seen: set[int] = set()
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for kind in type(module).__mro__[:-1]:
                if not kind.__module__.startswith(_LIBRARIES) and id(kind) not in self._seen:
                    self._seen.add(id(kind))
                    self._save_attributes(kind)
            for name, value in list(vars(module).items()):
                if name not in _TABLES:
                    self._follow(value, 0)

    def _follow(self, value: Any, depth: int) -> None:
        """Save the numbers of an object, and those of the objects in it."""
        if isinstance(value, (*_PLAIN, *_NOT_FOLLOWED)) or id(value) in self._seen:
            return
        if depth > _DEEPEST or len(self._seen) > _MOST or type(value).__module__.startswith(_LIBRARIES):
            return
        self._seen.add(id(value))
        inner = self._save_attributes(value) if hasattr(value, "__dict__") else []
        if isinstance(value, (list, deque, dict, tuple)) and len(value) <= _LONGEST:
            pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
            if not isinstance(value, tuple):
                self._items += [(value, key, item) for key, item in pairs if isinstance(item, _PLAIN)]
            inner += [item for _, item in pairs]
        for item in inner:
            self._follow(item, depth + 1)

    def _save_attributes(self, holder: Any) -> list[Any]:
        """Save the numbers among an object's attributes, and return all attributes."""
        attributes = dict(vars(holder))
        self._attributes += [(holder, name, value) for name, value in attributes.items() if isinstance(value, _PLAIN)]
        return list(attributes.values())

    def restore(self) -> None:
        """Restore each number that has changed since."""
        for holder, name, value in self._attributes:
            if vars(holder).get(name, _ABSENT) is value:
                continue
            if isinstance(holder, type):
                setattr(holder, name, value)
            else:
                vars(holder)[name] = value
        for holder, key, value in self._items:
            if isinstance(holder, dict):
                if holder.get(key, _ABSENT) is not value:
                    holder[key] = value
            elif key < len(holder) and holder[key] is not value:
                holder[key] = value
