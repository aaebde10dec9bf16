"""Mistakes around dropout that one class or one statement shows."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from puredrop.linting.source.frames import Container, Instance, Layer
from puredrop.linting.source.interpreter import Interpreter, Known
from puredrop.linting.source.modules import Class, Source
from puredrop.linting.source.observing import Observer
from puredrop.linting.source.values import MISSING, Kind, Value, is_keep_name, is_rate_name, text_of
from puredrop.linting.source.verdicts import Outcome, is_ignored, is_test, place_of

__all__ = ["patterns"]

_REGISTERS = ("ModuleList", "ModuleDict", "Sequential", "add_module", "register_module", "setattr")
_KEEPS_STATE = ("fork_rng", "rng_state", "preserve_rng", "get_states", "set_states", "device_states")


def patterns(source: Source, observer: Observer, known: Known) -> Iterator[Outcome]:
    """Yield the mistakes that need no mode."""
    yield from _layers(observer)
    yield from _unused(observer)
    yield from _zeroed(observer)
    yield from _fixed_keys(observer)
    for owner in source.every_class:
        if owner.is_module:
            yield from _unregistered(owner, known)
        yield from _recomputed(owner)
    yield from _checkpoints(source)


def _found(source: Source, node: ast.AST, code: str, detail: str = "") -> Outcome:
    place = place_of(source, node)
    return Outcome(place, "on", code, place, detail, is_ignored=is_ignored(source, node, code))


def _layers(observer: Observer) -> Iterator[Outcome]:
    """Yield layers whose rate is something else."""
    for node, (layer, frame) in observer.layers.items():
        rate = layer.rate
        written = text_of(node.args[0]) if node.args else next((text_of(k.value) for k in node.keywords), "")
        if rate.is_flag and (rate.const is MISSING or rate.const is True):
            yield _found(frame.source, node, "PD304", f"p={written}")
        elif any(is_keep_name(name) for name in rate.names):
            yield _found(frame.source, node, "PD305", f"p={written}")
        else:
            yield Outcome(place_of(frame.source, node), "off")


def _unused(observer: Observer) -> Iterator[Outcome]:
    for node, frame in observer.unused.items():
        if not is_test(frame):
            yield _found(frame.source, node, "PD203", text_of(node))


def _zeroed(observer: Observer) -> Iterator[Outcome]:
    """Yield assignments in eval mode only that set a rate to 0, which nothing sets again."""
    training, evaluated = observer.writes[True], observer.writes[False]
    again = {node.attr for node, write in training.items() if _is_method(write.frame)}
    for node, write in evaluated.items():
        if node in training or node.attr in again or not _is_method(write.frame):
            continue
        name = write.frame.function.name if write.frame.function else ""
        if write.value.kind is Kind.OFF and not write.value.is_flag and is_rate_name(node.attr) and name not in ("train", "eval"):
            yield _found(write.frame.source, node, "PD204", f"{ast.unparse(node)} = 0")


def _is_method(frame: object) -> bool:
    function = getattr(frame, "function", None)
    return function is not None and function.name != "__init__"


def _fixed_keys(observer: Observer) -> Iterator[Outcome]:
    for node, frame in observer.keys.items():
        if frame.owner is not None and frame.owner.is_module and not is_test(frame):
            yield _found(frame.source, node, "PD407", text_of(node))


def _unregistered(owner: Class, known: Known) -> Iterator[Outcome]:
    """Yield attributes that hold dropout layers in a list or dict of Python's."""
    run = Interpreter(True, known=known)
    for method in owner.methods.values():
        for node in ast.walk(method.node):
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
                continue
            target = node.targets[0]
            if not (isinstance(target.value, ast.Name) and target.value.id == "self"):
                continue
            value = run.attribute(owner, target.attr)
            if _holds_dropout(value) and not _is_registered(owner, target.attr, node.value):
                yield _found(owner.source, node, "PD106", f"self.{target.attr}")


def _holds_dropout(value: Value, depth: int = 0) -> bool:
    """Return whether a value is a plain list or dict with a layer that drops, also within other modules."""
    if not isinstance(value.target, Container) or (value.target.is_module and depth == 0) or depth > 3:
        return False
    return any(_drops(one, depth) for one in value.target.elements)


def _drops(value: Value, depth: int) -> bool:
    target = value.target
    if isinstance(target, Instance):
        return target.owner.is_module and "nn.Dropout" in target.owner.source.segment(target.owner.node)
    return isinstance(target, Layer) or _holds_dropout(value, depth + 1)


def _is_registered(owner: Class, name: str, value: ast.expr) -> bool:
    """Return whether the class hands an attribute, or the variable it came from, to a module that registers it."""
    for one in owner.lineage:
        for call in ast.walk(one.node):
            if not isinstance(call, ast.Call):
                continue
            function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if function in _REGISTERS and any(_mentions(part, name, value) for part in (*call.args, *call.keywords)):
                return True
    return False


def _mentions(node: ast.AST, name: str, value: ast.expr) -> bool:
    variable = value.id if isinstance(value, ast.Name) else None
    return any(
        (isinstance(part, ast.Attribute) and part.attr == name)
        or (variable is not None and isinstance(part, ast.Name) and part.id == variable)
        for part in ast.walk(node)
    )


def _recomputed(owner: Class) -> Iterator[Outcome]:
    """Yield autograd functions that run a forward again and do not restore the generators."""
    names = [base if isinstance(base, str) else base.node.name for base in owner.bases]
    backward = owner.methods.get("backward")
    if backward is None or not any(name.endswith("autograd.Function") or name == "Function" for name in names):
        return
    text, body = owner.source.segment(owner.node), owner.source.segment(backward.node)
    if "enable_grad" in body and "autograd" in body + text and not any(word in text for word in _KEEPS_STATE):
        yield _found(owner.source, owner.node, "PD406", f"{owner.node.name}.backward runs the forward again")


def _checkpoints(source: Source) -> Iterator[Outcome]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            for word in node.keywords:
                if word.arg == "preserve_rng_state" and isinstance(word.value, ast.Constant) and word.value.value is False:
                    yield _found(source, node, "PD406", "preserve_rng_state=False")
