"""Scope of an interpretation: frames of the functions that run, their variables, and what calls showed."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from puredrop.linting.source.calls import Dropper
from puredrop.linting.source.modules import Class, Function, Source
from puredrop.linting.source.values import Kind, Value, join, unknown

_ELEMENTS = 24

__all__ = [
    "Arguments",
    "Bound",
    "Closure",
    "Container",
    "Dropped",
    "Activation",
    "Instance",
    "Layer",
    "Observation",
    "Partial",
    "Scope",
]


@dataclass(frozen=True)
class Instance:
    """An instance of a class of the tree, and the call that makes it, where it is known."""

    owner: Class
    node: ast.Call | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Bound:
    """A method of an instance."""

    function: Function
    owner: Class


@dataclass(frozen=True, eq=False)
class Closure:
    """A function that was defined while another ran, with the variables that it sees."""

    function: Function
    frame: Activation
    state: Scope


@dataclass(frozen=True, eq=False)
class Arguments:
    """Arguments of a call.

    Args:
        node: the call.
        values: the arguments' values, by the identity of their expressions.
        earlier: arguments that functools.partial holds, which come first.
    """

    node: ast.Call
    values: dict[int, Value]
    earlier: tuple[Arguments, ...] = ()

    def merged_with(self, later: Arguments) -> Arguments:
        """Return these arguments with those of a later call."""
        values = {**self.values, **later.values}
        return Arguments(later.node, values, (*self.earlier, self))

    def without_first(self) -> Arguments:
        """Return the arguments but the first."""
        rest = ast.copy_location(ast.Call(self.node.func, self.node.args[1:], self.node.keywords), self.node)
        return Arguments(rest, self.values)

    @property
    def positional(self) -> list[ast.expr]:
        """Expressions given by position."""
        return [one for part in (*self.earlier, self) for one in part.node.args]

    @property
    def named(self) -> dict[str | None, ast.expr]:
        """Expressions given by keyword; later calls win."""
        return {one.arg: one.value for part in (*self.earlier, self) for one in part.node.keywords}

    @property
    def spread(self) -> Value | None:
        """Value that stands for arguments given as *rest or **rest; None if there are none."""
        stars = [one.value for one in self.positional if isinstance(one, ast.Starred)]
        stars += [value for name, value in self.named.items() if name is None]
        return unknown(*(self.values[id(one)] for one in stars)) if stars else None

    def get(self, position: int, name: str) -> Value | None:
        """Return an argument; None if it is not given, or not to be told from others given as *rest."""
        if name in self.named:
            return self.values[id(self.named[name])]
        before = self.positional[: position + 1]
        if len(before) <= position or any(isinstance(one, ast.Starred) for one in before):
            return None
        return self.values[id(before[position])]

    def by_parameter(self, function: Function, has_instance: bool) -> dict[str, Value]:
        """Return the arguments by a function's parameters."""
        names = list(function.parameters)[1 if has_instance and not function.is_static else 0 :]
        given = {name: value for i, name in enumerate(names) if (value := self.get(i, name)) is not None}
        spread = self.spread
        return (
            given if spread is None else {**dict.fromkeys((one for one in names if one not in given), spread), **given}
        )


@dataclass(frozen=True, eq=False)
class Partial:
    """A function with some of its arguments, as functools.partial makes it."""

    function: Value
    arguments: Arguments


@dataclass(frozen=True, eq=False)
class Container:
    """A list, tuple or dict of values; or a module that holds them."""

    elements: tuple[Value, ...]
    is_module: bool = False

    def joined(self, containers: list[Any]) -> Container:
        """Return a container of this one's elements and those of others that a variable may hold instead."""
        return self.with_elements(
            one for container in containers if isinstance(container, Container) for one in container.elements
        )

    def with_elements(self, elements: Iterable[Value]) -> Container:
        """Return the container with further elements, some of them if there are many."""
        known = {id(one): one for one in (*self.elements, *elements) if one.target is not self}
        return Container(tuple(known.values())[:_ELEMENTS], self.is_module)


@dataclass(frozen=True)
class Layer:
    """A layer that drops.

    Args:
        node: the call that creates it.
        maker: the function that ran when it was created.
        rate: its rate.
        inplace: whether it drops in place.
        mode: the mode that was set on it; None if none was.
    """

    node: ast.Call
    maker: Function | None
    rate: Value
    inplace: bool
    mode: Value | None = None


@dataclass(frozen=True)
class Dropped:
    """The result of a call that drops: whether in place, and the call."""

    inplace: bool
    node: ast.Call


@dataclass(eq=False)
class Activation:
    """A function that runs.

    Args:
        source: the source that it stands in.
        function: the function; None for the code of the file itself.
        owner: the class of `self`.
        parent: the frame that calls it; None where nothing is known of the caller.
        call: the call, in the parent's code.
        given: arguments, as values in the parent's terms.
        closure: the frame around it, of a function that was defined within another.
        returned: values that it returned so far.
    """

    source: Source
    function: Function | None = None
    owner: Class | None = None
    parent: Activation | None = None
    call: ast.Call | None = None
    given: dict[str, Value] = field(default_factory=dict)
    closure: Closure | None = None
    returned: list[Value] = field(default_factory=list)

    def outer_variable(self, name: str) -> Value | None:
        """Return the value of a variable of a function around this one; None if there is none."""
        closure = self.closure
        while closure is not None:
            if name in closure.state.variables:
                return closure.state.variables[name]
            closure = closure.frame.closure
        return None

    @property
    def chain(self) -> list[Activation]:
        """The frame and its callers, innermost first."""
        every = [self]
        while every[-1].parent is not None:
            every.append(every[-1].parent)
        return every

    @property
    def outermost(self) -> Activation:
        """The frame whose caller is not known."""
        return self.chain[-1]

    def in_terms_of_caller(self, value: Value) -> Value:
        """Return a returned value with the parameters that the caller's arguments depend on."""
        params = frozenset().union(*(self.given[name].params for name in value.params if name in self.given))
        return replace(value, params=params)


@dataclass(eq=False)
class Scope:
    """Variables of a frame at one point.

    Args:
        variables: values by name; attributes as "self.name".
        is_dead: whether the point is never reached in this mode.
        is_doubtful: whether it is only reached under a condition that may depend on the mode in a way not followed.
    """

    variables: dict[str, Value] = field(default_factory=dict)
    is_dead: bool = False
    is_doubtful: bool = False

    def copy(self) -> Scope:
        """Return a copy that goes its own way."""
        return Scope(dict(self.variables), self.is_dead, self.is_doubtful)

    def become(self, states: Iterable[Scope]) -> None:
        """Continue where several paths meet."""
        alive = [state for state in states if not state.is_dead]
        self.is_dead = not alive
        if not alive:
            return
        if len(alive) == 1:
            self.variables = alive[0].variables
            return
        names = set().union(*(state.variables for state in alive))
        self.variables = {
            name: join(state.variables[name] for state in alive if name in state.variables) for name in names
        }


@dataclass(frozen=True)
class Observation:
    """One call that drops, as it was reached in one mode.

    Args:
        node: the call.
        frame: the function that runs it.
        dropper: what is called.
        rate: its rate, in the frame's terms.
        flag: its training flag; None if the call has none.
        is_doubtful: see `Scope`.
        has_flag: whether the flag is given, and not its default.
    """

    node: ast.Call
    frame: Activation
    dropper: Dropper
    rate: Value
    flag: Value | None
    is_doubtful: bool
    has_flag: bool = False

    @property
    def key(self) -> tuple[int, ...]:
        """Identity of the call and of the calls that lead to it, the same in each mode."""
        return (id(self.node), *(id(frame.call) for frame in self.frame.chain))

    @property
    def certainty(self) -> tuple[bool, bool]:
        """Order of observations: one that drops for certain counts most."""
        flag = self.flag.kind if self.flag is not None else Kind.ON
        return Kind.OFF not in (flag, self.rate.kind), not self.is_doubtful and Kind.UNKNOWN not in (
            flag,
            self.rate.kind,
        )
