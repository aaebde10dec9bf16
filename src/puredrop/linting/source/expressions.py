"""Evaluation of expressions on abstract values, in one mode."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from puredrop.linting.source.activation import Activation, Bound, Closure, Container, Instance, Layer, Scope
from puredrop.linting.source.calls import canonical
from puredrop.linting.source.interpretation import Interpretation
from puredrop.linting.source.modules import Class
from puredrop.linting.source.values import (
    MISSING,
    OFF,
    Kind,
    Value,
    as_switch,
    asks_for_dropout,
    constant,
    join,
    negated,
    opaque,
    switch,
    unknown,
)

__all__ = ["attribute", "called", "element_of", "evaluate"]

_SETTINGS = ("cfg", "config", "configs", "conf", "args", "opt", "opts", "hparams", "hp", "flags", "params", "settings")
"""Objects whose `training` is a setting and no module's flag."""


def evaluate(run: Interpretation, node: ast.expr | None, state: Scope, frame: Activation) -> Value:
    """Return the abstract value of an expression, and record the calls in it that drop."""
    if node is None:
        return OFF
    rule = _RULES.get(type(node))
    if rule is not None:
        return rule(run, node, state, frame)
    children = [
        evaluate(run, child, state, frame) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
    ]
    return opaque(*children)


def _constant(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    return constant(node.value)


def _name(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    name = node.id
    if name in state.variables:
        value = state.variables[name]
        if value.const is not MISSING:
            return value
        if value.kind is Kind.OPAQUE and value.params and asks_for_dropout(name):
            return switch(run.is_training, value.params)
        return replace(value, names=value.names | {name})
    outer = frame.outer_variable(name)
    if outer is not None:
        return replace(outer, names=outer.names | {name})
    target = frame.source.refers_to(node)
    if target is not None:
        return Value(Kind.ON, frozenset({name}), target=target)
    if name in frame.source.globals:
        return replace(run.global_value(frame.source, name), names=frozenset({name}))
    if as_switch(name) is not None:
        return unknown(names=[name])
    return opaque(names=[name])


def _attribute(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    return called(run, node, state, frame)[1]


def called(run: Interpretation, node: ast.expr, state: Scope, frame: Activation) -> tuple[Value | None, Value]:
    """Return the object that an attribute is read from, None for a name of a module, and the attribute's value."""
    if not isinstance(node, ast.Attribute):
        return None, evaluate(run, node, state, frame)
    target = None if _is_bound(node, state) else frame.source.refers_to(node)
    if target is not None:
        return None, Value(Kind.ON, frozenset({node.attr}), target=target)
    base = evaluate(run, node.value, state, frame)
    if isinstance(node.value, ast.Name) and node.value.id == "self" and f"self.{node.attr}" in state.variables:
        value = state.variables[f"self.{node.attr}"]
        return base, replace(value, names=value.names | {node.attr})
    return base, attribute(run, base, node.attr, ast.unparse(node.value))


def _is_bound(node: ast.expr, state: Scope) -> bool:
    """Return whether the first name of a dotted expression is a local variable."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in state.variables


def attribute(run: Interpretation, base: Value, name: str, path: str) -> Value:
    """Return the value of an attribute of a value that the code calls `path`."""
    owner = base.target.owner if isinstance(base.target, Instance) else None
    last = path.rpartition(".")[2].strip("_").lower()
    if name == "training" and last not in _SETTINGS:
        if owner is not None and not owner.is_module and "training" in owner.writers:
            return run.attribute(owner, name)
        return switch(run.is_training)
    if owner is not None:
        method = owner.method(name)
        if method is not None and name not in owner.writers:
            if method.is_property:
                return run.inline(method, None, base, Scope(), Activation(method.source))
            return Value(Kind.ON, frozenset({name}), target=Bound(method, owner))
        if name in owner.writers or name in owner.constants:
            value = run.attribute(owner, name)
            return replace(value, names=value.names | {name})
        if name in ("train", "eval"):
            return Value(Kind.ON, frozenset({name}))  # the method, which is true
    if isinstance(base.target, str):
        return Value(Kind.ON, frozenset({name}), target=canonical(f"{base.target}.{name}"))
    if isinstance(base.target, Class):
        method = base.target.method(name)
        if method is not None:
            return Value(Kind.ON, frozenset({name}), target=method)
    if isinstance(base.target, Layer) and name == "p":
        return opaque(names=["p"]) if base.target.rate.can_be_on else OFF
    if as_switch(name) is not None:
        return unknown(base, names=[name])
    return replace(opaque(base, names=[name]), params=base.params)


def _bool_op(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    ends = Kind.OFF if isinstance(node.op, ast.And) else Kind.ON
    inner, values = state.copy(), []
    for part in node.values:
        value = evaluate(run, part, inner, frame)
        values.append(value)
        if value.kind is ends:
            return replace(value, params=_all(values), is_flag=all(one.is_flag for one in values))
        inner.is_doubtful |= value.kind is Kind.UNKNOWN
    left = [value for value in values if value.kind in (Kind.OPAQUE, Kind.UNKNOWN)]
    if not left:
        return replace(values[-1], params=_all(values))
    kind = Kind.UNKNOWN if any(value.kind is Kind.UNKNOWN for value in left) else Kind.OPAQUE
    names = frozenset().union(*(value.names for value in left))
    is_option = all(value.names for value in left)  # a comparison is no option
    if isinstance(node.op, ast.Or) and is_option and any(one.is_flag and one.kind is Kind.OFF for one in values):
        return switch(False, _all(values))  # on in eval mode only where an option asks for that
    return Value(kind, names, _all(values))


def _all(values: list[Value]) -> frozenset[str]:
    return frozenset().union(*(value.params for value in values))


def _unary(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    value = evaluate(run, node.operand, state, frame)
    if isinstance(node.op, ast.Not):
        return negated(value)
    if value.const is not MISSING and isinstance(node.op, ast.USub) and isinstance(value.const, (int, float)):
        return constant(-value.const)
    return replace(value, is_flag=False)


def _binary(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    left, right = (evaluate(run, side, state, frame) for side in (node.left, node.right))
    if left.const is not MISSING and right.const is not MISSING:
        return _calculated(left.const, node.op, right.const)
    if isinstance(node.op, ast.Mult) and isinstance(left.target, Container):
        return left  # [layer] * 3
    if isinstance(node.op, (ast.Mult, ast.BitAnd)):
        return _product(left, right)
    if isinstance(node.op, ast.Sub) and left.const == 1 and right.kind in (Kind.ON, Kind.OFF) and right.is_flag:
        return negated(right)
    if isinstance(node.op, (ast.Div, ast.FloorDiv)) and left.kind is Kind.OFF:
        return replace(left, params=left.params | right.params)
    if isinstance(node.op, ast.Add) and isinstance(left.target, Container) and isinstance(right.target, Container):
        return Value(Kind.ON, target=left.target.with_elements(right.target.elements))
    if isinstance(node.op, (ast.Add, ast.BitOr)):
        if left.kind is right.kind and left.kind in (Kind.ON, Kind.OFF):
            return Value(left.kind, params=left.params | right.params)
        if Kind.OFF in (left.kind, right.kind):
            return replace(right if left.kind is Kind.OFF else left, params=left.params | right.params)
    return opaque(left, right)


def _calculated(left: Any, op: ast.operator, right: Any) -> Value:
    rules: dict[type, Callable[[Any, Any], Any]] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }
    rule = rules.get(type(op))
    if rule is None or not all(isinstance(side, (int, float)) for side in (left, right)):
        return opaque()
    try:
        return constant(rule(left, right))
    except ArithmeticError:
        return opaque()


def _product(left: Value, right: Value) -> Value:
    params = left.params | right.params
    if Kind.OFF in (left.kind, right.kind):
        return Value(Kind.OFF, params=params)
    if left.kind is Kind.ON and left.is_flag:
        return replace(right, params=params, is_flag=False)
    if right.kind is Kind.ON and right.is_flag:
        return replace(left, params=params, is_flag=False)
    return opaque(left, right, names=left.names | right.names)


def _compare(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    left = evaluate(run, node.left, state, frame)
    values = [evaluate(run, side, state, frame) for side in node.comparators]
    if len(values) > 1:
        return opaque(left, *values)
    right, op = values[0], node.ops[0]
    phase = _phase(run, left, right, node)
    if phase is not None:
        return negated(phase) if isinstance(op, (ast.NotEq, ast.IsNot, ast.NotIn)) else phase
    if left.is_flag and isinstance(right.const, bool):
        same = isinstance(op, (ast.Eq, ast.Is)) == right.const
        return left if same else negated(left)
    if left.const is not MISSING and right.const is not MISSING:
        return _compared(left.const, op, right.const)
    if right.const is None and isinstance(op, (ast.Is, ast.IsNot)):
        return _is_none(left, isinstance(op, ast.Is))
    if isinstance(right.const, (int, float)) and right.const == 0 and left.kind is Kind.OFF:
        result = isinstance(op, (ast.Eq, ast.LtE, ast.GtE))
        return Value(Kind.ON if result else Kind.OFF, params=left.params)
    return opaque(left, right)


def _is_none(value: Value, asks: bool) -> Value:
    if value.kind is Kind.ON or value.is_flag or (value.const is not MISSING and value.const is not None):
        return Value(Kind.OFF if asks else Kind.ON, params=value.params)
    if value.const is None:
        return Value(Kind.ON if asks else Kind.OFF, params=value.params)
    return opaque(value)


def _compared(left: Any, op: ast.cmpop, right: Any) -> Value:
    rules: dict[type, Callable[[], Any]] = {
        ast.Eq: lambda: left == right,
        ast.NotEq: lambda: left != right,
        ast.Is: lambda: left is right,
        ast.IsNot: lambda: left is not right,
        ast.Gt: lambda: left > right,
        ast.GtE: lambda: left >= right,
        ast.Lt: lambda: left < right,
        ast.LtE: lambda: left <= right,
    }
    rule = rules.get(type(op))
    try:
        return opaque() if rule is None else constant(bool(rule()))
    except TypeError:
        return opaque()


_PHASES = {
    "train": True,
    "training": True,
    "eval": False,
    "test": False,
    "val": False,
    "valid": False,
    "inference": False,
}
_PHASE_NAMES = ("mode", "phase", "stage", "split", "run_mode", "status", "state")


def _phase(run: Interpretation, left: Value, right: Value, node: Any) -> Value | None:
    """Return the flag that a comparison such as `mode == "train"` is; None if it is none."""
    word = right.const if isinstance(right.const, str) else None
    if word is None or word.lower() not in _PHASES or not left.names & set(_PHASE_NAMES):
        return None
    if left.params and left.const is MISSING and left.kind is Kind.OPAQUE:
        return switch(run.is_training is _PHASES[word.lower()], left.params)
    return unknown(left, names=left.names) if left.const is MISSING else None


def _if_expression(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    test = evaluate(run, node.test, state, frame)
    if test.kind in (Kind.ON, Kind.OFF):
        value = evaluate(run, node.body if test.kind is Kind.ON else node.orelse, state, frame)
        return replace(value, params=value.params | test.params)
    inner = state.copy()
    inner.is_doubtful |= test.kind is Kind.UNKNOWN
    values = [evaluate(run, branch, inner, frame) for branch in (node.body, node.orelse)]
    value = join(values)
    if test.kind is Kind.UNKNOWN and values[0].kind is not values[1].kind:
        return replace(value, kind=Kind.UNKNOWN, params=value.params | test.params)
    return value


def _container(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    elements = getattr(node, "elts", None) or list(getattr(node, "values", []))
    values = tuple(evaluate(run, one, state, frame) for one in elements if one is not None)
    return Value(Kind.ON if values else Kind.OFF, target=Container(values))


def _comprehension(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    inner = state.copy()
    for part in node.generators:
        run.assign(part.target, element_of(evaluate(run, part.iter, inner, frame)), inner, frame)
        for condition in part.ifs:
            value = evaluate(run, condition, inner, frame)
            if value.kind is Kind.OFF:
                return Value(Kind.OFF, params=value.params, target=Container(()))
            inner.is_doubtful |= value.kind is Kind.UNKNOWN
    elements = [node.value] if isinstance(node, ast.DictComp) else [node.elt]
    return Value(Kind.ON, target=Container(tuple(evaluate(run, one, inner, frame) for one in elements)))


def element_of(value: Value) -> Value:
    """Return what an element of a value is."""
    if isinstance(value.target, Container) and value.target.elements:
        return replace(join(value.target.elements), params=value.params)
    return replace(opaque(value), names=frozenset())


def _subscript(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    base, index = evaluate(run, node.value, state, frame), evaluate(run, node.slice, state, frame)
    if isinstance(base.target, Container) and base.target.elements:
        two = base.target.elements
        if len(two) == 2 and index.kind in (Kind.ON, Kind.OFF) and (index.is_flag or index.const in (0, 1)):
            chosen = two[index.kind is Kind.ON]
            return replace(chosen, params=chosen.params | index.params)
        return element_of(base)
    names = [index.const] if isinstance(index.const, str) else base.names
    if isinstance(index.const, str) and as_switch(index.const) is not None:
        return unknown(base, names=names)
    return opaque(base, names=names)


def _named(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    value = evaluate(run, node.value, state, frame)
    run.assign(node.target, value, state, frame)
    return value


def _lambda(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    closure = Closure(frame.source.function(node, frame.owner), frame, state.copy())
    run.define(closure)
    return Value(Kind.ON, target=closure)


def _inner(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    return evaluate(run, node.value, state, frame)


def _call(run: Interpretation, node: Any, state: Scope, frame: Activation) -> Value:
    return run.call(node, state, frame)


_RULES: dict[type, Callable[[Interpretation, Any, Scope, Activation], Value]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.IfExp: _if_expression,
    ast.Tuple: _container,
    ast.List: _container,
    ast.Set: _container,
    ast.Dict: _container,
    ast.ListComp: _comprehension,
    ast.SetComp: _comprehension,
    ast.GeneratorExp: _comprehension,
    ast.DictComp: _comprehension,
    ast.Subscript: _subscript,
    ast.NamedExpr: _named,
    ast.Lambda: _lambda,
    ast.Await: _inner,
    ast.Starred: _inner,
    ast.Call: _call,
}
