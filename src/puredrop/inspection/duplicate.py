"""Duplicate of a model: modules of its own over the same parameters, so that watching and running change no user's."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from puredrop._torch import COMPILED, fsdp_mesh, has_hooks, remove_hooks, share_parameters
from puredrop.inspection.frames import Enter, Leave
from puredrop.ops import KeySource, SiteKeySource

__all__ = ["StrayError", "duplicate", "strays_refused"]

_TABLES = frozenset(name for name, value in vars(Module()).items() if isinstance(value, (dict, set)))
"""Attributes in which torch keeps a module's parts and hooks."""
_PLAIN = frozenset((type(None), bool, int, float, str))
_LONGEST = 10_000
"""The most entries of a user's container that is searched for modules: a longer one holds data."""


class StrayError(ValueError):
    """A forward calls a module of the user's where only the duplicate should run."""


def duplicate(
    model: Module, chosen: Collection[Module] = (), exchange: Callable[[Module], Module] = lambda copied: copied
) -> Module:
    """Return the same model in modules of its own, which share its parameters.

    Who watches a model or runs its members does so on a duplicate: modes, hooks, keys and buffers of the user's modules
    stay as they are, also for other threads that use the model meanwhile.

    What a module holds besides its registered parts refers to the duplicate as well where it lies in containers,
    methods, partials, closures, defaults of arguments, or attributes of an object; `strays_refused` names the rest. The
    duplicate of a pinned model is not pinned, and that of a compiled one runs uncompiled.

    Args:
        model: any module.
        chosen: modules whose copies are exchanged.
        exchange: function from such a copy to what takes its place.
    """
    return _Duplication(model, chosen, exchange).made


@contextmanager
def strays_refused(model: Module) -> Iterator[None]:
    """Refuse, before they run, modules of a model that this thread calls while only a duplicate should run.

    Raises:
        StrayError: if the forward calls a module by a reference that the duplicate does not follow.
    """
    here = threading.get_ident()

    def refuse(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if threading.get_ident() == here:
                raise StrayError(
                    f"model calls {path or 'itself'} by a reference that a copy of the model does not follow, such as "
                    "a global; call it as an attribute of the module that uses it"
                )

        return hook

    hooks = [
        module.register_forward_pre_hook(refuse(path), prepend=True)
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Duplication:
    """One duplication: what it has copied so far, and `made`, the model's copy.

    Args:
        model, chosen, exchange: as of `duplicate`.
    """

    def __init__(self, model: Module, chosen: Collection[Module], exchange: Callable[[Module], Module]) -> None:
        self._copies: dict[int, Any] = {}
        self._kept: list[Any] = []  # an object that is collected would give its id to another
        self._storages: dict[int, torch.UntypedStorage] = {}
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        # FSDP exchanges parameters in each forward, in the tables of the user's modules.
        self._shares_tables = any(fsdp_mesh(module) is not None for module in modules)
        for module in modules:
            self._note_tensors(module)
        # What is exchanged comes first, so that all others refer to what takes its place.
        for module in modules:
            if module in chosen:
                new = self._blank(module)
                self._fill(module, new)
                self._note(module, exchange(new))
        blanks = [(module, self._blank(module)) for module in modules if id(module) not in self._copies]
        for module, new in blanks:
            self._fill(module, new)
        self.made: Module = self._value(model)

    def _note(self, old: Any, new: Any) -> Any:
        self._copies[id(old)] = new
        self._kept.append(old)
        return new

    def _note_tensors(self, module: Module) -> None:
        for parameter in module.parameters(recurse=False):
            self._note(parameter, parameter)
        for buffer in module.buffers(recurse=False):
            if id(buffer) not in self._copies:
                self._note(buffer, self._buffer(buffer))

    def _buffer(self, buffer: Tensor) -> Tensor:
        """Return a copy of a tensor in a copy of its storage, which views of it share."""
        number = _storage_number(buffer)
        if number is None:
            return buffer.detach().clone()
        if number not in self._storages:
            self._storages[number] = buffer.untyped_storage().clone()
        empty = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
        sizes = (buffer.storage_offset(), buffer.size(), buffer.stride())
        return empty.set_(self._storages[number], *sizes)

    def _blank(self, module: Module) -> Module:
        """Return an object of the module's class, as yet without attributes."""
        new: Module = self._note(module, object.__new__(type(module)))
        for name in _slots(type(module)):
            if hasattr(module, name):
                object.__setattr__(new, name, getattr(module, name))
        return new

    def _fill(self, module: Module, new: Module) -> None:
        """Give a copy the attributes of its module."""
        attributes = vars(module).copy()
        vars(new).update(attributes)
        for name, value in attributes.items():
            if type(value) in _PLAIN:
                continue
            if name in _TABLES or (isinstance(module, nn.RNNBase) and isinstance(value, list)):
                made = self._container(value) if value else value
                vars(new)[name] = value.copy() if made is value else made
            else:
                vars(new)[name] = self._value(value)
        share_parameters(module, new, self._shares_tables)
        if has_hooks(new):
            remove_hooks(new, _is_of_a_run)
        if isinstance(vars(new).get("key"), SiteKeySource):
            vars(new)["key"] = None
        if COMPILED in vars(new).get("_modules", ()):
            vars(new)["forward"] = getattr(new, COMPILED)

    def _value(self, value: Any, follows_objects: bool = True) -> Any:
        """Return a value that refers to the copies in place of what was copied; the same object where it need not."""
        if type(value) in _PLAIN:
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, Module):
            return self._copied(value)
        if isinstance(value, Tensor):
            return self._note(value, self._buffer(value)) if _storage_number(value) in self._storages else value
        if isinstance(value, (list, dict, set, deque, tuple)):
            return self._container(value, follows_objects) if 0 < len(value) <= _LONGEST else value
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
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._object(value) if follows_objects and hasattr(value, "__dict__") else value

    def _copied(self, module: Module) -> Module:
        """Return the copy of a module that has none yet: it is not registered, or a part of what is exchanged."""
        if isinstance(module, torch.jit.ScriptModule):
            scripted: Module = self._note(module, copy.deepcopy(module))
            return scripted
        self._note_tensors(module)
        new = self._blank(module)
        self._fill(module, new)
        return new

    def _container(self, value: Any, follows_objects: bool = True) -> Any:
        """Return a container of copies; the same one if it holds none, since a forward or a hook may write into it."""
        self._note(value, value)  # for one that holds itself
        kinds = {*map(type, value), *map(type, value.values() if isinstance(value, dict) else ())}
        if kinds <= _PLAIN:
            return value
        taken: Any = value if isinstance(value, tuple) else value.copy()  # another thread may change it meanwhile
        old = [item for pair in taken.items() for item in pair] if isinstance(value, dict) else list(taken)
        new = [self._value(item, follows_objects) for item in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        if isinstance(value, tuple):
            return self._note(value, type(value)(*new) if hasattr(value, "_fields") else type(value)(new))
        taken.clear()
        if isinstance(value, dict):
            taken.update(zip(new[::2], new[1::2], strict=True))
        elif isinstance(value, set):
            taken.update(new)
        else:
            taken.extend(new)
        return self._note(value, taken)

    def _partial(self, value: Any) -> Any:
        named = {name: self._value(item) for name, item in value.keywords.items()}
        made = functools.partial(self._value(value.func), *map(self._value, value.args), **named)
        vars(made).update(vars(value))
        return self._note(value, made)

    def _function(self, value: Any) -> Any:
        """Return a function whose closure and defaults refer to the copies."""
        self._note(value, value)
        cells, defaults, named = value.__closure__ or (), value.__defaults__, value.__kwdefaults__
        old = [_content(cell) for cell in cells]
        new = [self._value(content) for content in old]
        changed = self._value(defaults), self._value(named)
        if all(a is b for a, b in zip((*old, defaults, named), (*new, *changed), strict=True)):
            return value
        closure = tuple(cell if a is b else types.CellType(b) for cell, a, b in zip(cells, old, new, strict=True))
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, changed[0], closure or None)
        made.__kwdefaults__ = changed[1]
        vars(made).update(vars(value))
        return self._note(value, made)

    def _object(self, value: Any) -> Any:
        """Return an object whose attributes refer to the copies; objects in it are not followed."""
        self._note(value, value)
        # Torch's own objects, such as the state of FSDP, manage the user's modules.
        if isinstance(value, (type, types.ModuleType)) or type(value).__module__.startswith("torch."):
            return value
        changed = {}
        for name, item in vars(value).copy().items():
            new = self._value(item, follows_objects=False)
            if new is not item:
                changed[name] = new
        if not changed:
            return value
        try:
            made = object.__new__(type(value))
        except TypeError:  # of a class in C, whose objects are its own business
            return value
        vars(made).update({**vars(value), **changed})
        return self._note(value, made)


def _is_of_a_run(hook: Any) -> bool:
    """Return whether a hook belongs to a pinned model."""
    return isinstance(hook, (Enter, Leave)) or isinstance(getattr(hook, "__self__", None), KeySource)


def _content(cell: types.CellType) -> Any:
    """Return what a cell of a closure holds, None if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of a class's slots."""
    slots = [vars(parent).get("__slots__", ()) for parent in kind.__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _storage_number(tensor: Tensor) -> int | None:
    """Return what tells a tensor's storage from others; None for a tensor that shares none, or is of another kind."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    if tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.untyped_storage().data_ptr() or None
