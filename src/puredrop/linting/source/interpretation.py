"""Protocol of an interpretation, as its rules for statements, expressions and calls see it."""

from __future__ import annotations

import ast
from typing import Protocol

from puredrop.linting.source.activation import Activation, Arguments, Closure, Scope
from puredrop.linting.source.log import Log
from puredrop.linting.source.modules import Class, Function, Source
from puredrop.linting.source.values import Value

__all__ = ["Interpretation"]


class Interpretation(Protocol):
    """Interpretation in one mode; `Interpreter` has its meaning."""

    is_training: bool
    log: Log | None

    def global_value(self, source: Source, name: str) -> Value:
        """Return what a variable of a file is."""

    def attribute(self, owner: Class, name: str) -> Value:
        """Return what an attribute of an instance is."""

    def assign(self, target: ast.expr, value: Value, state: Scope, frame: Activation) -> None:
        """Assign a value to a variable, an attribute, or the parts of a tuple."""

    def define(self, closure: Closure) -> None:
        """Run a function that was defined within another."""

    def call(self, node: ast.Call, state: Scope, frame: Activation) -> Value:
        """Return the result of a call."""

    def inline(
        self,
        function: Function,
        arguments: Arguments | None,
        instance: Value | None,
        state: Scope,
        frame: Activation,
        closure: Closure | None = None,
    ) -> Value:
        """Return the result of a call of a function of the tree."""
