"""Calls on abstract values: of functions that drop, layers, functions of the tree, and a few of Python's own."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from puredrop.linting.source.activation import (
    Activation,
    Arguments,
    Bound,
    Closure,
    Container,
    Dropped,
    Instance,
    Layer,
    Observation,
    Partial,
    Scope,
)
from puredrop.linting.source.calls import CALLS, Dropper, is_layer, is_own
from puredrop.linting.source.expressions import attribute, element_of
from puredrop.linting.source.interpretation import Interpretation
from puredrop.linting.source.modules import Class, Function, last_name
from puredrop.linting.source.values import MISSING, OFF, ON, Kind, Value, as_switch, opaque, unknown

__all__ = ["CONTAINERS", "apply"]

_SAME = ("float", "int", "bool", "abs", "staticmethod")
_ARITHMETIC = ("min", "max", "sum", "round", "pow", "len")
CONTAINERS = ("list", "tuple", "dict", "OrderedDict", "reversed", "sorted")
_MODULES = ("ModuleList", "Sequential", "ModuleDict")
_CHAINED = ("to", "cuda", "cpu", "half", "float", "double", "requires_grad_", "type")
_DROPS = re.compile(r"_?(\w+_)?drop(out)?[123]?d?")
_NEW_LAYER = Dropper("PD105", 0, None)
_FIXED_KEY = "a key that is the same in each call"


def apply(
    run: Interpretation, function: Value, base: Value | None, arguments: Arguments, state: Scope, frame: Activation
) -> Value:
    """Return the result of a call.

    Args:
        run: the interpretation.
        function: what is called.
        base: the object whose attribute is called; None if a name is called.
        arguments: the evaluated arguments.
        state, frame: where the call stands.
    """
    target = function.target
    if isinstance(target, Partial):
        return apply(run, target.function, None, target.arguments.merged_with(arguments), state, frame)
    if isinstance(target, str):
        return _library(run, target, base, arguments, state, frame)
    if isinstance(target, Layer):
        return _layer(run, target, arguments.node, state, frame)
    if isinstance(target, Container) and target.is_module:
        in_forward = frame.owner is not None and frame.owner.is_module  # elsewhere it is a model, with modes of its own
        for one in target.elements if in_forward else ():
            if isinstance(one.target, Layer):
                _layer(run, one.target, arguments.node, state, frame)
        return opaque(*arguments.values.values())
    if isinstance(target, Class):
        return Value(Kind.ON, target=Instance(target, arguments.node))
    if isinstance(target, Instance):
        method = target.owner.method("forward") or target.owner.method("__call__")
        if method is None:
            return opaque(*arguments.values.values())
        return run.inline(method, arguments, function, state, frame)
    if isinstance(target, Bound):
        return run.inline(target.function, arguments, Value(Kind.ON, target=Instance(target.owner)), state, frame)
    if isinstance(target, Closure):
        return run.inline(target.function, arguments, None, state, frame, target)
    if isinstance(target, Function):
        return run.inline(target, arguments, None, state, frame)
    return _plain_call(run, function, base, arguments, state, frame)


def _library(
    run: Interpretation, name: str, base: Value | None, arguments: Arguments, state: Scope, frame: Activation
) -> Value:
    """Return the result of a call of a library, known by its dotted name."""
    if name in CALLS:
        return _drop(run, name, arguments, state, frame)
    given, last = list(arguments.values.values()), name.rpartition(".")[2]
    if is_layer(name):
        return _new_layer(run, arguments, state, frame)
    if name in ("puredrop.Key", "puredrop.rng.Key"):
        is_fixed = all(value.const is not MISSING for value in given)
        return Value(Kind.ON, target=_FIXED_KEY) if is_fixed else opaque(*given)
    if last in _MODULES and "nn" in name:
        return Value(Kind.ON, target=Container(tuple(one for value in given for one in _elements(value)), True))
    if name == "functools.partial" and arguments.node.args:
        function = arguments.values[id(arguments.node.args[0])]
        return Value(Kind.ON, target=Partial(function, arguments.without_first()))
    if last.endswith("is_grad_enabled"):
        return unknown(names=[last])
    return _plain_call(run, Value(Kind.ON, frozenset({last})), base, arguments, state, frame)


def _plain_call(
    run: Interpretation, function: Value, base: Value | None, arguments: Arguments, state: Scope, frame: Activation
) -> Value:
    """Return the result of a call that is not followed, or of one of Python's own functions."""
    node, given = arguments.node, list(arguments.values.values())
    name = last_name(node.func)
    if base is None and name in _SAME and given:
        return replace(given[0], is_flag=False) if name in ("float", "int") else given[0]
    if base is None and name == "getattr" and len(given) > 1 and isinstance(given[1].const, str):
        target = frame.source.refers_to(ast.Attribute(node.args[0], given[1].const, ast.Load()))
        if isinstance(target, str) and target in CALLS:
            return Value(Kind.ON, target=target)
        return attribute(run, given[0], given[1].const, ast.unparse(node.args[0]))
    if base is not None:
        result = _method(run, base, name, arguments, state, frame)
        if result is not None:
            return result
    if as_switch(name) is not None:
        return unknown(function, names=[name])
    if base is None and name == "super" and frame.owner is not None and len(frame.owner.lineage) > 1:
        return Value(Kind.ON, target=Instance(frame.owner.lineage[1]))
    if base is None and name in ("enumerate", "zip") and given:
        parts = [element_of(one) for one in given]
        pair = Container(tuple([opaque(), *parts] if name == "enumerate" else parts))
        return Value(Kind.ON, target=Container((Value(Kind.ON, target=pair),)))
    if base is None and name in CONTAINERS and arguments.values:
        return Value(Kind.ON, target=Container(tuple(one for value in given for one in _elements(value))))
    if base is None and name in ("all", "any") and given:
        return _quantified(name, given[0])
    if base is None and name in _ARITHMETIC:
        return opaque(*given)
    if base is None and given and function.params and _DROPS.fullmatch(name):
        return replace(opaque(*given), target=Dropped(False, node))  # a layer that the caller hands in
    owner = base.target.owner if base is not None and isinstance(base.target, Instance) else None
    if given and owner is not None and owner.is_module and _DROPS.fullmatch(name) and name not in owner.writers:
        return replace(opaque(*given), target=Dropped(False, node))
    return replace(opaque(function, *given), names=frozenset({f"{name}()"}))


def _quantified(name: str, value: Value) -> Value:
    """Return the result of `all` or `any` of a value's elements."""
    ends = Kind.OFF if name == "all" else Kind.ON
    elements = _elements(value)
    deciding = next((one for one in elements if one.kind is ends), None)
    return deciding if deciding is not None else opaque(*elements)


def _method(
    run: Interpretation, base: Value, name: str, arguments: Arguments, state: Scope, frame: Activation
) -> Value | None:
    """Return the result of a method of a layer, a container, a key or a dict; None if it is another method."""
    given, function = list(arguments.values.values()), arguments.node.func
    if isinstance(base.target, Layer) and name in ("train", "eval"):
        mode = OFF if name == "eval" else given[0] if given else ON
        changed = replace(base, target=replace(base.target, mode=mode))
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            run.assign(function.value, changed, state, frame)
        return changed
    if isinstance(base.target, (Layer, Container, Instance)) and name in _CHAINED:
        return base
    if name in ("append", "extend", "insert") and isinstance(base.target, Container) and given:
        more = [given[-1]] if name == "append" else _elements(given[-1])
        new = Value(Kind.ON, target=base.target.with_elements(more))
        if isinstance(function, ast.Attribute) and isinstance(function.value, (ast.Name, ast.Attribute)):
            run.assign(function.value, new, state, frame)
        return Value(Kind.OFF, const=None)
    if name in ("get", "pop", "setdefault") and given and isinstance(given[0].const, str):
        key = given[0].const
        return unknown(base, names=[key]) if as_switch(key) is not None else opaque(base, names=[key])
    return None


def _new_layer(run: Interpretation, arguments: Arguments, state: Scope, frame: Activation) -> Value:
    """Return a new layer."""
    rate = arguments.get(0, "p") or arguments.get(0, "drop_prob") or ON
    inplace = arguments.get(1, "inplace") or OFF
    layer = Layer(arguments.node, frame.function, rate, inplace.can_be_on)
    if run.log is not None and not state.is_dead:
        run.log.layer(layer, frame)
    return Value(Kind.ON, target=layer)


def _layer(run: Interpretation, layer: Layer, node: ast.Call, state: Scope, frame: Activation) -> Value:
    """Record the call of a layer, if it was created in the function that runs."""
    if layer.maker is frame.function is not None and frame.function.name not in ("__init__", "setup"):
        flag = layer.mode or ON
        seen = Observation(layer.node, frame, _NEW_LAYER, layer.rate, flag, state.is_doubtful, layer.mode is not None)
        _record(run, seen, state)
    return Value(Kind.ON, target=Dropped(layer.inplace, node))


def _drop(run: Interpretation, name: str, arguments: Arguments, state: Scope, frame: Activation) -> Value:
    """Record a call of a function that drops."""
    dropper, spread = CALLS[name], arguments.spread
    rate = arguments.get(dropper.rate, dropper.rate_name)
    flag = None if dropper.flag is None else arguments.get(dropper.flag, dropper.flag_name)
    has_flag = flag is not None
    if flag is None and dropper.flag is not None:
        flag = spread or (ON if dropper.flag_default else OFF)
    if rate is None:
        rate = spread or Value(Kind.ON if dropper.rate_default else Kind.OFF, const=dropper.rate_default)
    if has_flag and flag is not None and flag.const is True and not flag.params and rate.params:
        dropper = replace(dropper, flag=None)  # the rate alone can switch it off, as that of attention
    key = arguments.get(99, "key") if is_own(name) else None
    if key is not None and key.target == _FIXED_KEY and run.log is not None and not state.is_dead:
        run.log.key_fixed(arguments.node, frame)
    in_module = frame.owner is not None and frame.owner.is_module
    augments = dropper.augments and not has_flag
    if not augments and (key is None or has_flag or in_module):  # outside of a module, a key asks for this very mask
        _record(
            run,
            Observation(arguments.node, frame, dropper, rate, flag, state.is_doubtful, has_flag),
            state,
        )
    inplace = None if dropper.inplace is None else arguments.get(dropper.inplace, "inplace")
    return Value(Kind.ON, target=Dropped(inplace is not None and inplace.can_be_on, arguments.node))


def _record(run: Interpretation, observation: Observation, state: Scope) -> None:
    if run.log is not None and not state.is_dead:
        run.log.dropped(observation, run.is_training)


def _elements(value: Value) -> tuple[Value, ...]:
    return value.target.elements if isinstance(value.target, Container) else (value,)
