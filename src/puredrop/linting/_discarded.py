"""Results that the user's code throws away, told from the code after a call."""

from __future__ import annotations

import dis
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Caller", "Results", "is_thrown_away"]


class Caller(NamedTuple):
    """A function of the user's that waits for a call to return.

    Args:
        code: the function's code.
        position: offset of the call in it.
    """

    code: CodeType
    position: int


@dataclass(frozen=True)
class _Result:
    """A tensor that nothing has used so far, with its site and who waits for it."""

    tensor: weakref.ref[Tensor]
    path: str
    callers: tuple[Caller, ...]


class Results:
    """Tensors that dropout has returned, until something uses them.

    A result counts as thrown away if no function of torch took it, if it was collected before the forward ended, so
    that neither the output nor an attribute holds it, and if the code at its call says so. Functions that this package
    cannot see, such as those of extensions, are in that code.

    Attributes:
        callers: path of a dropout module -> the functions that wait for its last call.
    """

    def __init__(self) -> None:
        self.callers: dict[str, tuple[Caller, ...]] = {}
        self._unused: dict[int, _Result] = {}
        self._collected: list[_Result] = []

    def add(self, tensor: Tensor, path: str, callers: tuple[Caller, ...]) -> None:
        """Note a result."""
        earlier = self._unused.get(id(tensor))
        if earlier is not None and earlier.tensor() is None:
            self._collected.append(earlier)
        self._unused[id(tensor)] = _Result(weakref.ref(tensor), path, callers)

    def use(self, value: Any) -> None:
        """Note that a function takes the tensors in a value."""
        if not self._unused:
            return
        if isinstance(value, Tensor):
            result = self._unused.get(id(value))
            if result is not None and result.tensor() is value:
                del self._unused[id(value)]
        elif isinstance(value, (tuple, list, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                self.use(part)

    def thrown_away(self) -> list[str]:
        """Return the paths of the sites whose results were thrown away, each once."""
        lost = [*self._collected, *(result for result in self._unused.values() if result.tensor() is None)]
        return list(dict.fromkeys(result.path for result in lost if is_thrown_away(result.callers)))


def is_thrown_away(callers: Iterable[Caller]) -> bool:
    """Return whether a call's result is thrown away: by the caller, or by its caller if it only returns the result.

    Args:
        callers: the functions that wait for the result, innermost first.
    """
    for caller in callers:
        fate = _fate(caller)
        if fate != "returned":
            return fate == "thrown away"
    return False


def _fate(caller: Caller) -> str:
    """Return what a function does with a call's result: "returned", "thrown away", or else "used"."""
    lines = [one for one in dis.get_instructions(caller.code) if one.opname not in ("CACHE", "NOP", "EXTENDED_ARG")]
    later = [one for one in lines if one.offset > caller.position]
    if not later or later[0].opname == "RETURN_VALUE":
        return "returned" if later else "used"
    if later[0].opname == "POP_TOP":
        return "thrown away"
    stored = _first_stored(later[0])
    if stored is None or stored in _loaded(later[0]):
        return "returned" if stored is not None and later[1].opname == "RETURN_VALUE" else "used"
    if later[1].opname.startswith("LOAD_FAST") and later[1].argval == stored and later[2].opname == "RETURN_VALUE":
        return "returned"
    if not any(stored in _loaded(one) for one in lines):
        return "thrown away"
    return "thrown away" if _is_overwritten(stored, later[1:]) else "used"


def _is_overwritten(name: str, later: list[dis.Instruction]) -> bool:
    """Return whether a variable is stored again before it is read, as far as the code runs straight on."""
    for one in later:
        if one.is_jump_target or "JUMP" in one.opname or one.opname in ("FOR_ITER", "SEND"):
            return False
        if _first_stored(one) == name:  # also where the same instruction reads it after that
            return True
        if name in _loaded(one):
            return False
    return False


def _first_stored(one: dis.Instruction) -> str | None:
    """Return the variable that an instruction stores a result in."""
    if not one.opname.startswith("STORE_FAST"):
        return None
    return str(one.argval[0] if isinstance(one.argval, tuple) else one.argval)


def _loaded(one: dis.Instruction) -> tuple[str, ...]:
    """Return the local variables that an instruction reads; one may do two things at once."""
    if one.opname == "STORE_FAST_LOAD_FAST":
        return (str(one.argval[1]),)
    if "LOAD" not in one.opname and "DELETE" not in one.opname:
        return ()
    return tuple(map(str, one.argval)) if isinstance(one.argval, tuple) else (str(one.argval),)
