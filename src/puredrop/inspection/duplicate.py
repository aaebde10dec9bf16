"""Duplicate of a model: modules of its own over the same parameters, so that watching and running change no user's."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module

from puredrop._torch import COMPILED, remove_hooks, share_parameters
from puredrop.inspection.frames import Enter, Leave
from puredrop.inspection.state import live_forwards
from puredrop.ops import SiteKeySource

__all__ = ["calls_noted", "duplicate"]

_TABLES = frozenset(name for name, value in vars(Module()).items() if isinstance(value, (dict, set)))
"""Attributes in which torch keeps a module's parts and hooks."""
_PLAIN = frozenset((type(None), bool, int, float, str))
_LONGEST = 10_000
"""The most entries of a container that is searched for modules: a longer one holds data."""


def duplicate(model: Module, exchanged: Callable[[Module, Module], Module] = lambda module, new: new) -> Module:
    """Return the same model in modules of its own, which share its parameters.

    Who watches a model or runs its members does so on a duplicate: modes, hooks, keys and buffers of the user's modules
    stay as they are, also for other threads that use the model meanwhile.

    What a module holds besides its registered parts refers to the duplicate as well where it lies in containers,
    methods, `functools.partial` or closures; other objects keep the user's modules, which `calls_noted` shows. The
    duplicate of a pinned model is not pinned, and that of a compiled one runs uncompiled.

    Args:
        model: any module.
        exchanged: function from a module and its copy to what takes the copy's place.
    """
    return _Duplication(exchanged).module(model)


class _Duplication:
    """One duplication: what it has copied so far."""

    def __init__(self, exchanged: Callable[[Module, Module], Module]) -> None:
        self._exchanged = exchanged
        self._copies: dict[int, Any] = {}
        self._kept: list[Any] = []  # an object that is collected would give its id to another
        self._pinned = {id(forward) for forward in live_forwards()}

    def module(self, module: Module) -> Module:
        """Return the copy of a module and of all that it holds."""
        if id(module) in self._copies:
            found: Module = self._copies[id(module)]
            return found
        if isinstance(module, torch.jit.ScriptModule):
            scripted: Module = self._note(module, copy.deepcopy(module))
            return scripted
        new = type(module).__new__(type(module))
        self._note(module, new)
        for buffer in module.buffers(recurse=False):
            if id(buffer) not in self._copies:
                self._note(buffer, buffer.detach().clone())
        for parameter in module.parameters(recurse=False):
            self._note(parameter, parameter)
        attributes = list(vars(module).items())
        vars(new).update(attributes)
        for name, value in attributes:
            is_table = name in _TABLES
            changed = self._container(value) if is_table and value else self._value(value)
            is_shared_table = changed is value and is_table
            vars(new)[name] = copy.copy(value) if is_shared_table else changed
        share_parameters(module, new)
        remove_hooks(new, self._is_of_a_run)
        if isinstance(vars(new).get("key"), SiteKeySource):
            vars(new)["key"] = None
        if hasattr(new, COMPILED):
            vars(new)["forward"] = getattr(new, COMPILED)
        taken: Module = self._note(module, self._exchanged(module, new))
        return taken

    def _note(self, old: Any, new: Any) -> Any:
        self._copies[id(old)] = new
        self._kept.append(old)
        return new

    def _is_of_a_run(self, hook: Any) -> bool:
        """Return whether a hook belongs to a pinned model."""
        return isinstance(hook, (Enter, Leave)) or id(getattr(hook, "__self__", None)) in self._pinned

    def _value(self, value: Any) -> Any:
        """Return a value that refers to the copies in place of what was copied; the same object where it need not."""
        if type(value) in _PLAIN:
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, Module):
            return self.module(value)
        if isinstance(value, (list, dict, set)):
            return self._container(value) if 0 < len(value) <= _LONGEST else value
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, types.MethodType):
            owner = self._value(value.__self__)
            if owner is value.__self__:
                return value
            is_copy = type(owner) is type(value.__self__)
            return types.MethodType(value.__func__, owner) if is_copy else getattr(owner, value.__name__)
        if isinstance(value, weakref.ref):
            target = value()
            referred = self._value(target)
            return value if referred is target else weakref.ref(referred)
        if isinstance(value, functools.partial):
            return self._partial(value)
        return self._function(value) if isinstance(value, types.FunctionType) and value.__closure__ else value

    def _container(self, value: Any) -> Any:
        """Return a container of copies; the same one if it holds none, since a forward or a hook may write into it."""
        self._note(value, value)  # for one that holds itself
        keys = list(value) if isinstance(value, dict) else []
        old = [value[key] for key in keys] if isinstance(value, dict) else list(value)
        new = [self._value(item) for item in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        made = self._note(value, copy.copy(value))
        if isinstance(value, list):
            made[:] = new
        elif isinstance(value, dict):
            made.update(zip(keys, new, strict=True))
        else:
            made.clear()
            made.update(new)
        return made

    def _tuple(self, value: Any) -> Any:
        new = [self._value(item) for item in value]
        if all(a is b for a, b in zip(value, new, strict=True)):
            return value
        return self._note(value, type(value)(*new) if hasattr(value, "_fields") else type(value)(new))

    def _partial(self, value: Any) -> Any:
        named = {name: self._value(item) for name, item in value.keywords.items()}
        made = functools.partial(self._value(value.func), *map(self._value, value.args), **named)
        vars(made).update(vars(value))
        return self._note(value, made)

    def _function(self, value: Any) -> Any:
        """Return a function whose closure refers to the copies."""
        self._note(value, value)
        cells = value.__closure__
        old = [_content(cell) for cell in cells]
        new = [self._value(content) for content in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        closure = tuple(cell if a is b else types.CellType(b) for cell, a, b in zip(cells, old, new, strict=True))
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
        made.__kwdefaults__ = value.__kwdefaults__
        vars(made).update(vars(value))
        return self._note(value, made)


def _content(cell: types.CellType) -> Any:
    """Return what a cell of a closure holds, None if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


@contextmanager
def calls_noted(modules: Sequence[Module]) -> Iterator[list[Module]]:
    """Yield a list that fills with those of the modules that this thread calls until the block ends."""
    called: list[Module] = []
    here = threading.get_ident()

    def note(module: Module, _: Any) -> None:
        if threading.get_ident() == here:
            called.append(module)

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
