"""Execution of statements on abstract values, in one mode."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from puredrop.linting.source.activation import Activation, Closure, Scope
from puredrop.linting.source.expressions import element_of, evaluate
from puredrop.linting.source.interpretation import Interpretation
from puredrop.linting.source.values import Kind, Value, opaque

__all__ = ["execute"]


def execute(run: Interpretation, body: list[ast.stmt], state: Scope, frame: Activation) -> None:
    """Run statements; the state is then that after them, dead where no path leads."""
    for node in body:
        if state.is_dead:
            return
        rule = _RULES.get(type(node))
        if rule is not None:
            rule(run, node, state, frame)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    evaluate(run, child, state, frame)


def _expression(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    value = evaluate(run, node.value, state, frame)
    if run.log is not None and isinstance(node.value, ast.Call):
        run.log.thrown_away(node.value, value, frame)


def _assign(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    value = evaluate(run, node.value, state, frame)
    for target in node.targets:
        run.assign(target, value, state, frame)


def _annotated(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    if node.value is not None:
        run.assign(node.target, evaluate(run, node.value, state, frame), state, frame)


def _augmented(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    target: ast.expr
    if isinstance(node.target, ast.Name):
        target = ast.Name(node.target.id, ast.Load())
    elif isinstance(node.target, ast.Attribute):
        target = ast.Attribute(node.target.value, node.target.attr, ast.Load())
    else:
        evaluate(run, node.value, state, frame)
        return
    run.assign(node.target, evaluate(run, ast.BinOp(target, node.op, node.value), state, frame), state, frame)


def _return(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    frame.returned.append(evaluate(run, node.value, state, frame) if node.value else Value(Kind.OFF, const=None))
    state.is_dead = True


def _raise(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    state.is_dead = True


def _assert(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    state.is_dead = evaluate(run, node.test, state, frame).kind is Kind.OFF


def _if(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    test = evaluate(run, node.test, state, frame)
    if test.kind in (Kind.ON, Kind.OFF):
        execute(run, node.body if test.kind is Kind.ON else node.orelse, state, frame)
        return
    branches(run, [node.body, node.orelse], state, frame, test.kind is Kind.UNKNOWN)


def branches(
    run: Interpretation, bodies: list[list[ast.stmt]], state: Scope, frame: Activation, is_doubtful: bool = False
) -> None:
    """Run several bodies, of which one is taken; undecided if the choice may depend on the mode."""
    states = []
    for body in bodies:
        inner = state.copy()
        inner.is_doubtful |= is_doubtful
        execute(run, body, inner, frame)
        states.append(inner)
    left_early = is_doubtful and any(one.is_dead for one in states)
    state.become(states)
    state.is_doubtful |= left_early


def _loop(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    """Run a loop's body twice, so that what the first round assigns reaches the second."""
    is_doubtful = False
    if isinstance(node, ast.While):
        test = evaluate(run, node.test, state, frame)
        if test.kind is Kind.OFF:
            return
        is_doubtful = test.kind is Kind.UNKNOWN
    else:
        run.assign(node.target, element_of(evaluate(run, node.iter, state, frame)), state, frame)
    for _ in range(2):
        branches(run, [node.body, []], state, frame, is_doubtful)
    execute(run, node.orelse, state, frame)


def _try(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    before = state.copy()
    execute(run, [*node.body, *node.orelse], state, frame)
    states = [state.copy()]
    for handler in node.handlers:
        inner = before.copy()
        if handler.name:
            inner.variables[handler.name] = opaque()
        execute(run, handler.body, inner, frame)
        states.append(inner)
    state.become(states)
    if state.is_dead:
        execute(run, node.finalbody, before, frame)
    else:
        execute(run, node.finalbody, state, frame)


def _with(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    for item in node.items:
        value = evaluate(run, item.context_expr, state, frame)
        if item.optional_vars is not None:
            run.assign(item.optional_vars, opaque(value), state, frame)
    execute(run, node.body, state, frame)


def _match(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    subject = evaluate(run, node.subject, state, frame)
    bodies = [case.body for case in node.cases if not _excludes(subject, case.pattern)]
    branches(run, [*bodies, []], state, frame)


def _excludes(subject: Value, pattern: ast.pattern) -> bool:
    """Return whether a training flag does not match True or False."""
    if not isinstance(pattern, ast.MatchSingleton) or not isinstance(pattern.value, bool):
        return False
    return subject.is_flag and (subject.kind is Kind.ON) is not pattern.value


def _function(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    if frame.function is None:
        return  # a function of the file itself is an entry of its own
    closure = Closure(frame.source.function(node, frame.owner), frame, state.copy())
    state.variables[node.name] = Value(Kind.ON, target=closure)
    run.define(closure)


def _class(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    if frame.function is not None:
        state.variables[node.name] = Value(Kind.ON, target=frame.source.class_(node))


def _leave(run: Interpretation, node: Any, state: Scope, frame: Activation) -> None:
    state.is_dead = True


_RULES: dict[type, Callable[[Interpretation, Any, Scope, Activation], None]] = {
    ast.Expr: _expression,
    ast.Assign: _assign,
    ast.AnnAssign: _annotated,
    ast.AugAssign: _augmented,
    ast.Return: _return,
    ast.Raise: _raise,
    ast.Assert: _assert,
    ast.If: _if,
    ast.For: _loop,
    ast.AsyncFor: _loop,
    ast.While: _loop,
    ast.Try: _try,
    ast.With: _with,
    ast.AsyncWith: _with,
    ast.Match: _match,
    ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function,
    ast.ClassDef: _class,
    ast.Break: _leave,
    ast.Continue: _leave,
}
if hasattr(ast, "TryStar"):
    _RULES[ast.TryStar] = _try
