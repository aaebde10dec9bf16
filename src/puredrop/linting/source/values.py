"""Abstract values: what an expression can be in one mode, as far as source code shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

__all__ = [
    "MISSING",
    "OFF",
    "ON",
    "Kind",
    "Value",
    "as_switch",
    "asks_for_dropout",
    "is_keep_name",
    "is_rate_name",
    "join",
    "negated",
    "opaque",
    "switch",
    "unknown",
]

MISSING: Any = object()
_SWITCH = re.compile(r"_?(is_|do_|in_|for_|use_|force_)?_?(train|training|trainable)(_?(mode|flag|phase|ing|time))?_?")
_REVERSE = re.compile(
    r"_?(is_|do_|in_|for_)?_?(eval|evaluate|evaluation|evaluating|test|testing|infer|inference|predict|deterministic|"
    r"validate|validation|sampling)(_?(mode|flag|phase|only))?_?"
)
_ASKS = re.compile(r"(use|apply|do|with|enable|add)_?drop(out)?|drop(out)?_?(switch|on|flag|enabled|active|mode)")
_KEEP = re.compile(r"(.*_)?(keep|retain|kept)_?(p|prob\w*|rate|ratio|pro)?")
_RATE = re.compile(r"(.*_)?(p|prob|rate|ratio|\w*drop\w*)")


class Kind(Enum):
    """Knowledge of a value in one mode."""

    OFF = "false or zero"
    ON = "true or not zero"
    OPAQUE = "set from outside, whatever the mode"
    UNKNOWN = "not followed; it may depend on the mode"


@dataclass(frozen=True)
class Value:
    """Abstract value of an expression.

    Args:
        kind: what is known of it.
        names: the identifiers that it was read from unchanged.
        params: parameters of the running function that it depends on.
        is_flag: whether it is the training flag itself, and no product with it.
        const: the constant, where it is one.
        target: what it refers to: a function, a class, an instance, a layer, a dotted name, a container.
    """

    kind: Kind
    names: frozenset[str] = frozenset()
    params: frozenset[str] = frozenset()
    is_flag: bool = False
    const: Any = field(default=MISSING, compare=False)
    target: Any = None

    @property
    def can_be_on(self) -> bool:
        """Return whether the value may be true or not zero."""
        return self.kind is not Kind.OFF


OFF, ON = Value(Kind.OFF), Value(Kind.ON)


def opaque(*values: Value, names: Iterable[str] = (), target: Any = None) -> Value:
    """Return a value that depends on others in a way that is not followed, but not on the mode unless they do."""
    kind = Kind.UNKNOWN if any(value.kind is Kind.UNKNOWN for value in values) else Kind.OPAQUE
    return Value(kind, frozenset(names), _params(values), target=target)


def unknown(*values: Value, names: Iterable[str] = ()) -> Value:
    """Return a value that may depend on the mode."""
    return Value(Kind.UNKNOWN, frozenset(names), _params(values))


def constant(value: Any) -> Value:
    """Return the value of a constant."""
    return Value(Kind.ON if value else Kind.OFF, const=value)


def switch(is_on: bool, params: Iterable[str] = ()) -> Value:
    """Return the training flag, in a mode in which it is on or off."""
    return Value(Kind.ON if is_on else Kind.OFF, params=frozenset(params), is_flag=True)


def negated(value: Value) -> Value:
    """Return the logical negation of a value."""
    kind = {Kind.ON: Kind.OFF, Kind.OFF: Kind.ON}.get(value.kind, value.kind)
    const = MISSING if value.const is MISSING else not value.const
    return replace(value, kind=kind, const=const, names=frozenset(), target=None)


def join(values: Iterable[Value]) -> Value:
    """Return what holds for each of several values that a variable may have."""
    every = list(values)
    if not every:
        return OFF
    if all(value == every[0] and value.const is every[0].const for value in every):
        return every[0]
    kinds = {value.kind for value in every}
    kind = kinds.pop() if len(kinds) == 1 else Kind.UNKNOWN if Kind.UNKNOWN in kinds else Kind.OPAQUE
    targets = [value.target for value in every if value.target is not None]
    target = targets[0].joined(targets[1:]) if targets and hasattr(targets[0], "joined") else next(iter(targets), None)
    return Value(
        kind,
        frozenset().union(*(value.names for value in every)),
        _params(every),
        all(value.is_flag for value in every),
        target=target,
    )


def _params(values: Iterable[Value]) -> frozenset[str]:
    return frozenset().union(*(value.params for value in values))


def as_switch(name: str) -> bool | None:
    """Return whether a name reads as a training flag (True) or as its negation (False); None if as neither."""
    if _SWITCH.fullmatch(name):
        return True
    return False if _REVERSE.fullmatch(name) else None


def asks_for_dropout(name: str) -> bool:
    """Return whether a name reads as a caller's switch of dropout, such as "use_dropout"."""
    return _ASKS.fullmatch(name) is not None


def is_keep_name(name: str) -> bool:
    """Return whether a name says that it is the share to keep."""
    return _KEEP.fullmatch(name.lower()) is not None


def is_rate_name(name: str) -> bool:
    """Return whether a name says that it is a rate."""
    return _RATE.fullmatch(name.lower()) is not None


def text_of(node: ast.AST, limit: int = 40) -> str:
    """Return the source of an expression, cut to a few words."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
