"""Uses of an attribute in the code of a class: in its methods, and in its construction."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch.nn import Module

__all__ = ["codes_in", "names_in_methods", "used_in_construction"]

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
            found = {used for code in codes_in(member) for used in (*code.co_names, *_texts(code))}
            if callable(member) and "super" not in found:
                hidden.add(name)
            names |= found
    return frozenset(names)


def codes_in(member: Any) -> Iterator[CodeType]:
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
        codes = list(codes_in(vars(parent).get("__init__")))
        owner = codes[0].co_varnames[0] if codes and codes[0].co_argcount else "self"
        for code in codes:
            lines = list(dis.get_instructions(code))
            stores = [i for i, one in enumerate(lines) if one.opname == "STORE_ATTR" and one.argval == name]
            reads = [i for i, one in enumerate(lines) if one.opname == "LOAD_ATTR" and one.argval == name]
            if any(_loads(lines[i - 1], owner) for i in reads):
                return True
            if any(_is_used_again(lines, store, code) for store in stores):
                return True
    return False


def _is_used_again(lines: list[dis.Instruction], store: int, code: CodeType) -> bool:
    """Return whether the value of an attribute is loaded elsewhere in a construction, or the code does not tell."""
    if store < 2:
        return True
    value, holder = lines[store - 2 : store]
    if isinstance(holder.argval, tuple):  # both in one instruction
        return sum(_loads(one, holder.argval[0]) for one in lines) > 1
    if holder.opname.startswith("LOAD_FAST") and value.opname.startswith(("LOAD_FAST", "LOAD_ATTR")):
        kind = value.opname[:9]
        return sum(_loads(one, value.argval) for one in lines if one.opname[:9] == kind) > 1
    if holder.opname.startswith("LOAD_FAST") and value.opname == "LOAD_CONST":
        return False
    arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return any(sum(_loads(one, name) for one in lines) > 1 for name in arguments)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    """Return whether an instruction loads a variable."""
    value = instruction.argval
    return instruction.opname.startswith("LOAD") and (value == name or (isinstance(value, tuple) and name in value))
