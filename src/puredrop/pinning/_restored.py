"""Variables of a model's code, restored after a trial of its forward."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module

__all__ = ["variables_restored"]

_CONTAINERS = (list, dict, set, deque)
_PLAIN = (type(None), bool, int, float, str)
_LONGEST = 10_000
"""The most entries of a container that is restored: a longer one holds data."""


@contextmanager
def variables_restored(model: Module) -> Iterator[None]:
    """Restore the globals and closures that a model's own code names, as far as they are numbers, texts or containers.

    A forward that counts its calls in a global, or appends to a list, then shows no trace of a trial.

    Args:
        model: the model whose code will run.
    """
    undo: list[Callable[[], object]] = []
    visited: set[int] = set()
    for function in _functions(model):
        if id(function) in visited:
            continue
        visited.add(id(function))
        for cell in function.__closure__ or ():
            _note_cell(cell, undo)
        for name in function.__code__.co_names:
            if name in function.__globals__:
                _note_global(function.__globals__, name, undo)
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _functions(model: Module) -> Iterator[types.FunctionType]:
    """Yield the functions of a model's classes and modules, without those of torch and puredrop."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    values = [value for kind in classes for value in vars(kind).values()]
    values += [value for module in model.modules() for value in vars(module).values()]
    for value in values:
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType) and not function.__module__.startswith(("torch.", "puredrop.")):
            yield function


def _note_cell(cell: types.CellType, undo: list[Callable[[], object]]) -> None:
    try:
        value = cell.cell_contents
    except ValueError:  # empty as yet
        return
    if type(value) in _PLAIN:
        undo.append(lambda: setattr(cell, "cell_contents", value))
    else:
        _note_container(value, undo)


def _note_global(scope: dict[str, Any], name: str, undo: list[Callable[[], object]]) -> None:
    value = scope[name]
    if type(value) in _PLAIN:
        undo.append(lambda: scope.__setitem__(name, value))
    else:
        _note_container(value, undo)


def _note_container(value: Any, undo: list[Callable[[], object]]) -> None:
    if type(value) not in _CONTAINERS or len(value) > _LONGEST:
        return
    before = value.copy()

    def restore() -> None:
        if len(value) == len(before) and all(a is b for a, b in zip(_entries(value), _entries(before), strict=True)):
            return
        value.clear()
        (value.update if isinstance(value, (dict, set)) else value.extend)(before)

    undo.append(restore)


def _entries(value: Any) -> list[Any]:
    """Return the entries of a container, keys and values of a dict."""
    return [*value, *value.values()] if isinstance(value, dict) else list(value)
