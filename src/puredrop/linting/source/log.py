"""Log of an interpretation: calls that drop, layers that are made, attributes that are assigned."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass

from puredrop.linting.source.activation import Activation, Dropped, Layer, Observation
from puredrop.linting.source.calls import WORDS
from puredrop.linting.source.modules import Function
from puredrop.linting.source.values import Value, as_switch, asks_for_dropout, is_rate_name

__all__ = ["Log", "Write", "is_switched"]


@dataclass(frozen=True)
class Write:
    """An assignment to an attribute of `self`."""

    node: ast.Attribute
    value: Value
    frame: Activation


def is_switched(function: Function) -> bool:
    """Return whether a parameter of a function is named like a rate or a training flag."""
    return any(as_switch(one) is not None or asks_for_dropout(one) or is_rate_name(one) for one in function.arguments)


class Log:
    """Record of the interpretations of one file.

    Args:
        names: names of functions of the tree whose callers decide whether they drop.

    Attributes:
        reached: for each mode, the calls that drop, by `Observation.key`.
        writes: for each mode, assignments to attributes, by node.
        layers: layers that were made, by node, and the frames in which.
        unused: calls that drop and whose results are not used, with their frames.
        keys: calls with a key that is the same in each call, with their frames.
        too_long: functions with more calls, or deeper ones, than are followed.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.reached: dict[bool, dict[tuple[int, ...], Observation]] = {True: {}, False: {}}
        self.writes: dict[bool, dict[ast.Attribute, Write]] = {True: {}, False: {}}
        self.layers: dict[ast.Call, tuple[Layer, Activation]] = {}
        self.unused: dict[ast.Call, Activation] = {}
        self.keys: dict[ast.Call, Activation] = {}
        self.too_long: dict[Function, None] = {}
        words = [*map(re.escape, WORDS), "[dD]rop", *(rf"\b{re.escape(name)}\b" for name in names)]
        self._words = re.compile("|".join(words))
        self._interesting: dict[ast.AST, bool] = {}
        self._handing: dict[ast.AST, bool] = {}

    def is_interesting(self, function: Function) -> bool:
        """Return whether a function may drop, or call one that does."""
        if function.node not in self._interesting:
            text = function.source.segment(function.node)
            self._interesting[function.node] = self._words.search(text) is not None
        return self._interesting[function.node]

    def hands_on(self, function: Function) -> bool:
        """Return whether a function's arguments can decide whether it drops."""
        if function.node not in self._handing:
            self._handing[function.node] = self.is_interesting(function) and self._takes_part(function)
        return self._handing[function.node]

    def _takes_part(self, function: Function) -> bool:
        """Return whether a parameter is named like a rate or a flag, or is used as one may be."""
        names = set(function.arguments)
        if is_switched(function):
            return True
        used: list[ast.AST] = []
        for node in ast.walk(function.node):
            if isinstance(node, ast.Call) and self._words.search(ast.unparse(node.func)):
                used += [*node.args[1:], *node.keywords]
            elif isinstance(node, (ast.If, ast.IfExp)):
                used.append(node.test)
        return any(isinstance(part, ast.Name) and part.id in names for one in used for part in ast.walk(one))

    def dropped(self, observation: Observation, is_training: bool) -> None:
        """Record a call that drops; of several in one mode, the most certain."""
        reached = self.reached[is_training]
        earlier = reached.get(observation.key)
        if earlier is None or observation.certainty > earlier.certainty:
            reached[observation.key] = observation

    def wrote(self, node: ast.Attribute, value: Value, frame: Activation, is_training: bool) -> None:
        """Record an assignment to an attribute."""
        self.writes[is_training][node] = Write(node, value, frame)

    def layer(self, layer: Layer, frame: Activation) -> None:
        """Record a new layer."""
        self.layers.setdefault(layer.node, (layer, frame))

    def thrown_away(self, node: ast.Call, value: Value, frame: Activation) -> None:
        """Record the result of a call that stands as a statement of its own."""
        if isinstance(value.target, Dropped) and not value.target.inplace and value.target.node is node:
            self.unused.setdefault(node, frame)

    def cut(self, frame: Activation) -> None:
        """Record that a call which may drop was not followed."""
        if frame.outermost.function is not None:
            self.too_long.setdefault(frame.outermost.function)

    def key_fixed(self, node: ast.Call, frame: Activation) -> None:
        """Record a call with a key that is the same in each call."""
        self.keys.setdefault(node, frame)
