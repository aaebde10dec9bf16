"""Mistakes around dropout that one class or one statement shows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from puredrop.linting.source.activation import Activation, Container, Instance, Layer
from puredrop.linting.source.calling import CONTAINERS
from puredrop.linting.source.interpreter import Interpreter, Knowledge
from puredrop.linting.source.log import Log
from puredrop.linting.source.modules import Class, Source, last_name
from puredrop.linting.source.values import Kind, Value, is_rate_name, text_of
from puredrop.linting.source.verdicts import Outcome, is_ignored, is_test, is_test_file, place_of, wrong_rate

__all__ = ["patterns"]

_REGISTERS = ("ModuleList", "ModuleDict", "Sequential", "add_module", "register_module", "setattr", "__init__")
_KEEPS_STATE = ("fork_rng", "rng_state", "preserve_rng", "get_states", "set_states", "device_states")


def patterns(source: Source, log: Log, knowledge: Knowledge) -> Iterator[Outcome]:
    """Yield the mistakes that need no mode."""
    yield from _layers(log)
    yield from _unused(log)
    yield from _zeroed(log)
    yield from _fixed_keys(log)
    for function in log.too_long:
        place = place_of(function.source, function.node)
        yield Outcome(place, "unknown", "PD002", place, f"more calls lead from {function.name} than are followed")
    for owner in source.every_class:
        if owner.is_module:
            yield from _unregistered(owner, knowledge)
        if "enable_grad" in source.text:
            yield from _recomputed(owner)
    if not is_test_file(source.file):
        yield from _checkpoints(source)


def _outcome(source: Source, node: ast.AST, code: str, detail: str = "") -> Outcome:
    place = place_of(source, node)
    return Outcome(place, "on", code, place, detail, is_ignored=is_ignored(source, node, code))


def _layers(log: Log) -> Iterator[Outcome]:
    """Yield layers whose rate is something else."""
    for node, (layer, frame) in log.layers.items():
        written = text_of(node.args[0]) if node.args else next((text_of(k.value) for k in node.keywords), "")
        code = wrong_rate(layer.rate)
        if code is None:
            yield Outcome(place_of(frame.source, node), "off")
        else:
            yield _outcome(frame.source, node, code, f"p={written}")


def _unused(log: Log) -> Iterator[Outcome]:
    for node, frame in log.unused.items():
        if not is_test(frame):
            yield _outcome(frame.source, node, "PD203", text_of(node))


def _zeroed(log: Log) -> Iterator[Outcome]:
    """Yield assignments in eval mode only that set a rate to 0, which nothing sets again."""
    training, evaluated = log.writes[True], log.writes[False]
    again = {node.attr for node, write in training.items() if _is_method(write.frame)}
    for node, write in evaluated.items():
        if node in training or node.attr in again or not _is_method(write.frame):
            continue
        name = write.frame.function.name if write.frame.function else ""
        if (
            write.value.kind is Kind.OFF
            and not write.value.is_flag
            and is_rate_name(node.attr)
            and name not in ("train", "eval")
        ):
            yield _outcome(write.frame.source, node, "PD204", f"{ast.unparse(node)} = 0")


def _is_method(frame: Activation) -> bool:
    return frame.function is not None and frame.function.name != "__init__"


def _fixed_keys(log: Log) -> Iterator[Outcome]:
    """Yield calls with the same key in each step: in a module's methods, and in loops that run backward."""
    for node, frame in log.keys.items():
        in_module = frame.owner is not None and frame.owner.is_module and not is_test(frame)
        if in_module or any(node in set(ast.walk(loop)) for loop in _training_loops(frame.source)):
            yield _outcome(frame.source, node, "PD407", text_of(node))


def _training_loops(source: Source) -> Iterator[ast.AST]:
    if not is_test_file(source.file):
        loops = (node for node in source.nodes if isinstance(node, (ast.For, ast.While)))
        yield from (loop for loop in loops if ".backward(" in source.segment(loop))


def _unregistered(owner: Class, knowledge: Knowledge) -> Iterator[Outcome]:
    """Yield attributes that hold dropout layers in a list or dict of Python's."""
    run = Interpreter(True, knowledge=knowledge)
    for name in _list_attributes(owner):
        value = run.attribute(owner, name)
        if isinstance(value.target, Container) and not value.target.is_module and not _is_registered(owner, name):
            held = {id(one) for other in owner.writers if other != name for one in _held(run.attribute(owner, other))}
            loose = next((one for one in _dropping(value) if id(one) not in held), None)
            if loose is not None:
                yield _outcome(owner.source, loose.node or owner.node, "PD106", f"self.{name}")


def _held(value: Value) -> Iterator[Any]:
    """Yield the modules that a module holds by an attribute, itself or in a container that is a module."""
    yield value.target
    if isinstance(value.target, Container) and value.target.is_module:
        yield from (one.target for one in value.target.elements)


def _list_attributes(owner: Class) -> set[str]:
    """Return the attributes that the class's own methods assign a list or dict, or a local variable that may be one."""
    found = set()
    for method in owner.methods.values():
        for node in ast.walk(method.node):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            is_list = isinstance(value, _LISTS) or (isinstance(value, ast.Name) and value.id not in method.parameters)
            is_list |= isinstance(value, ast.Call) and last_name(value.func) in CONTAINERS
            if is_list and isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                found |= {one.attr for one in targets if isinstance(one, ast.Attribute)}
    return found & set(owner.writers)


_LISTS = (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp, ast.BinOp)


def _dropping(value: Value, depth: int = 0) -> Iterator[Layer | Instance]:
    """Yield the layers and modules within a value that drop."""
    target = value.target
    if isinstance(target, Container) and depth < 4:
        for one in target.elements:
            yield from _dropping(one, depth + 1)
    elif isinstance(target, Layer) or (
        isinstance(target, Instance) and target.owner.is_module and "ropout" in target.owner.text
    ):
        yield target


def _is_registered(owner: Class, name: str) -> bool:
    """Return whether the class hands what an attribute holds to a module that registers it."""
    variables = {
        part.id
        for node in ast.walk(owner.node)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _stores(node, name) and node.value is not None
        for part in ast.walk(node.value)
        if isinstance(part, ast.Name)
    } | {
        part.id
        for node in ast.walk(owner.node)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("append", "extend")
        and isinstance(node.func.value, (ast.Name, ast.Attribute))
        and last_name(node.func.value) in {name, *_aliases(owner, name)}
        for part in ast.walk(node)
        if isinstance(part, ast.Name)
    }
    for node in ast.walk(owner.node):
        if isinstance(node, (ast.For, ast.comprehension)) and _mentions(node.iter, name, variables):
            variables |= {part.id for part in ast.walk(node.target) if isinstance(part, ast.Name)}
    variables -= {"self", "nn", "torch"}
    for one in owner.lineage:
        for method in one.methods.values():
            for call in ast.walk(method.node):
                if method.name in ("forward", "__call__") or not isinstance(call, ast.Call):
                    continue
                if last_name(call.func) in _REGISTERS and any(
                    _mentions(part, name, variables) for part in (*call.args, *call.keywords)
                ):
                    return True
    return False


def _aliases(owner: Class, name: str) -> set[str]:
    """Return the variables that an attribute is assigned from."""
    return {
        node.value.id
        for node in ast.walk(owner.node)
        if isinstance(node, ast.Assign) and _stores(node, name) and isinstance(node.value, ast.Name)
    }


def _stores(node: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(one, ast.Attribute) and one.attr == name for one in targets)


def _mentions(node: ast.AST, name: str, variables: set[str]) -> bool:
    return any(
        (isinstance(part, ast.Attribute) and part.attr == name) or (isinstance(part, ast.Name) and part.id in variables)
        for part in ast.walk(node)
    )


def _recomputed(owner: Class) -> Iterator[Outcome]:
    """Yield autograd functions that run a forward again and do not restore the generators."""
    names = [base if isinstance(base, str) else base.node.name for base in owner.bases]
    backward = owner.methods.get("backward")
    if backward is None or not any(name.endswith("autograd.Function") or name == "Function" for name in names):
        return
    text, forward = owner.text, owner.methods.get("forward")
    if "enable_grad" not in text or forward is None or any(word in text for word in _KEEPS_STATE):
        return
    again = {_context_call(node) for node in ast.walk(forward.node)} - {None}
    for node in ast.walk(backward.node):
        if _context_call(node) in again:
            yield _outcome(owner.source, node, "PD406", f"{ast.unparse(node)[:40]} runs again in backward")


def _context_call(node: ast.AST) -> str | None:
    """Return the attribute of an autograd function's context that a node calls; None if it calls none."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    is_context = isinstance(node.func.value, ast.Name) and node.func.value.id in ("ctx", "context")
    return node.func.attr if is_context and node.func.attr not in _OF_CONTEXT else None


_OF_CONTEXT = ("save_for_backward", "mark_dirty", "mark_non_differentiable", "set_materialize_grads")


def _checkpoints(source: Source) -> Iterator[Outcome]:
    """Yield checkpoints that do not restore the generators, also where a parameter says so by default."""
    for function in source.nodes if "preserve_rng_state" in source.text else ():
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
            continue
        given = {} if isinstance(function, ast.Module) else source.function(function).parameters
        for node in _nodes(function):
            for word in node.keywords if isinstance(node, ast.Call) else []:
                value = given.get(word.value.id) if isinstance(word.value, ast.Name) else word.value
                if word.arg == "preserve_rng_state" and isinstance(value, ast.Constant) and value.value is False:
                    yield _outcome(source, node, "PD406", "preserve_rng_state=False")


def _nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function but those of functions within it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _nodes(node)
