"""Uses of an attribute in the code of a class: in its methods, and in its construction."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch.nn import Module

__all__ = ["names_in_methods", "used_in_construction"]

_NOT_RUN = ("__init__", "__post_init__", "__repr__", "extra_repr", "reset_parameters")
"""Methods that no forward runs."""


def names_in_methods(kind: type) -> frozenset[str]:
    """Return the names of attributes that a class's methods use, without those of construction and display.

    A method that another class overrides counts only where the other calls `super`.

    Args:
        kind: the class.
    """
    names: set[str] = set()
    hidden: set[str] = set()
    for parent in kind.__mro__:
        if parent in (Module, object):
            continue
        for name, member in vars(parent).items():
            if name in _NOT_RUN or name in hidden:
                continue
            found = {used for code in _codes(member) for used in (*code.co_names, *_texts(code))}
            if callable(member) and "super" not in found:
                hidden.add(name)
            names |= found
    return frozenset(names)


def _codes(member: Any) -> Iterator[CodeType]:
    """Yield the code of a method, and of the functions in it."""
    member = getattr(member, "__func__", getattr(member, "fget", member))
    member = inspect.unwrap(member) if callable(member) else member
    code = getattr(member, "__code__", None)
    codes = [code] if isinstance(code, CodeType) else []
    while codes:
        code = codes.pop()
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        yield code


def _texts(code: CodeType) -> Iterator[str]:
    """Yield the strings of a code, which `getattr` may take."""
    yield from (text for text in code.co_consts if isinstance(text, str) and text.isidentifier())


def used_in_construction(kind: type, name: str) -> bool:
    """Return whether a class's construction uses the value that it stores as an attribute in another way as well.

    Args:
        kind: the class.
        name: the attribute.
    """
    for parent in kind.__mro__:
        for code in _codes(vars(parent).get("__init__")):
            lines = list(dis.get_instructions(code))
            stores = [i for i, one in enumerate(lines) if one.opname == "STORE_ATTR" and one.argval == name]
            if any(one.opname.startswith("LOAD") and one.opname != "LOAD_FAST" and one.argval == name for one in lines):
                return True
            for store in stores:
                source = _local_before(lines[:store])
                if source is not None and sum(_loads(one, source) for one in lines) > 1:
                    return True
    return False


def _local_before(lines: list[dis.Instruction]) -> str | None:
    """Return the variable whose plain value is stored: it is loaded just before the object that it is stored in."""
    names: list[Any] = []
    for one in lines[-2:]:
        if not one.opname.startswith("LOAD_FAST"):
            names.clear()
        else:
            names += one.argval if isinstance(one.argval, tuple) else [one.argval]
    return names[-2] if len(names) > 1 else None


def _loads(instruction: dis.Instruction, name: str) -> bool:
    """Return whether an instruction loads a variable."""
    value = instruction.argval
    return instruction.opname.startswith("LOAD") and (value == name or (isinstance(value, tuple) and name in value))
