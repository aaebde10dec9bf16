"""Interpretation of a file's functions on abstract values, in one mode at a time.

Each function is run as if an unknown caller had called it, and once more for each call of it that is seen. Loops run
twice, both branches of an undecided condition run, and recursion stops at a depth.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace

from puredrop.linting.source.activation import Activation, Arguments, Closure, Container, Instance, Scope
from puredrop.linting.source.calling import apply
from puredrop.linting.source.expressions import called, evaluate
from puredrop.linting.source.flow import execute
from puredrop.linting.source.log import Log
from puredrop.linting.source.modules import Class, Function, Source
from puredrop.linting.source.values import MISSING, Kind, Value, as_switch, join, opaque, switch, unknown

__all__ = ["Interpreter", "Knowledge"]

_DEPTH = 5
_STEPS = 10_000
"""Calls that one entry may evaluate; the results of others are unknown."""


@dataclass
class Knowledge:
    """Values that are worked out once.

    Args:
        variables: those of files, by file and name.
        attributes: those of instances, by mode, class and name.
        writes: what a method assigns to attributes, by mode, method and class.
        results: what functions return, by mode.
        depth: number of functions whose results are being worked out.
    """

    variables: dict[tuple[str, str], Value] = field(default_factory=dict)
    attributes: dict[tuple[bool, Class, str], Value] = field(default_factory=dict)
    writes: dict[tuple[bool, Function, Class], dict[str, list[Value]]] = field(default_factory=dict)
    results: dict[tuple[bool, Function], Value] = field(default_factory=dict)
    depth: int = 0


class Interpreter:
    """Interpretation in one mode.

    Args:
        is_training: the mode.
        log: what records the calls that drop; None to record nothing.
        knowledge: what earlier interpretations found.
    """

    def __init__(self, is_training: bool, log: Log | None = None, knowledge: Knowledge | None = None) -> None:
        self.is_training = is_training
        self.log = log
        self.knowledge = knowledge or Knowledge()
        self.writes: dict[str, list[Value]] = {}
        self._defined: set[Function] = set()
        self.steps = 0

    # Entries

    def run_open(self, function: Function, closure: Closure | None = None, owner: Class | None = None) -> Value:
        """Run a function as if an unknown caller had called it, and return its result.

        Args:
            function: the function.
            closure: what is around it, if it was defined within another.
            owner: the class of the instance, if it is derived from that of the method.
        """
        self.steps = 0
        owner = owner or function.owner
        frame = Activation(function.source, function, owner, closure=closure)
        state = Scope({name: self._free(name, frame) for name in function.every_parameter})
        if owner is not None:
            self._set_self(function, state, Value(Kind.ON, target=Instance(owner)))
        return self._body(function, state, frame)

    def run_file(self, source: Source) -> None:
        """Run the code of a file itself."""
        self.steps = 0
        execute(self, source.tree.body, Scope(), Activation(source))

    def _free(self, name: str, frame: Activation) -> Value:
        """Return what a parameter is where nothing is known of the caller."""
        reads = as_switch(name)
        if frame.owner is not None and frame.function is not None and frame.function.name in ("train", "set_mode"):
            reads = True if name == "mode" else reads
        if reads is not None:
            return replace(switch(self.is_training is reads, [name]), names=frozenset({name}))
        return Value(Kind.OPAQUE, frozenset({name}), frozenset({name}))

    def _set_self(self, function: Function, state: Scope, instance: Value) -> None:
        """Assign the instance to a method's first parameter."""
        first = next(iter(function.parameters), None)
        if first is not None and not function.is_static:
            state.variables[first] = instance

    def _body(self, function: Function, state: Scope, frame: Activation) -> Value:
        if isinstance(function.node, ast.Lambda):
            return evaluate(self, function.node.body, state, frame)
        execute(self, function.node.body, state, frame)
        return join(frame.returned) if frame.returned else Value(Kind.OFF, const=None)

    # Names and attributes

    def global_value(self, source: Source, name: str) -> Value:
        """Return what a variable of a file is."""
        key = source.file, name
        if key not in self.knowledge.variables:
            self.knowledge.variables[key] = opaque(names=[name])
            silent = Interpreter(True, knowledge=self.knowledge)
            value = join(evaluate(silent, node, Scope(), Activation(source)) for node in source.globals[name])
            if as_switch(name) is not None and value.const is MISSING:
                value = unknown(names=[name])
            self.knowledge.variables[key] = replace(value, params=frozenset())
        return self.knowledge.variables[key]

    def attribute(self, owner: Class, name: str) -> Value:
        """Return what an attribute of an instance is, after the methods that assign it."""
        key = self.is_training, owner, name
        if key not in self.knowledge.attributes:
            self.knowledge.attributes[key] = opaque(names=[name])
            values = []
            if name in owner.constants:
                silent = Interpreter(True, knowledge=self.knowledge)
                values.append(evaluate(silent, owner.constants[name], Scope(), Activation(owner.source)))
            writers = owner.writers.get(name, [])
            setters = [one for one in writers if one.name in ("train", "eval")]
            for method in setters or writers:
                values += self._written(method, owner).get(name, [])
            self.knowledge.attributes[key] = (
                replace(join(values), params=frozenset()) if values else opaque(names=[name])
            )
        return self.knowledge.attributes[key]

    def _written(self, method: Function, owner: Class) -> dict[str, list[Value]]:
        """Return what a method assigns to attributes; a module is born in training mode."""
        is_training = self.is_training or method.name == "__init__"
        key = is_training, method, owner
        if key not in self.knowledge.writes:
            silent = Interpreter(is_training, knowledge=self.knowledge)
            self.knowledge.writes[key] = silent.writes
            state = Scope()
            frame = Activation(method.source, method, owner)
            for one in method.every_parameter:
                value = silent._free(one, frame)
                is_setter = method.name in ("train", "eval") or not value.is_flag
                state.variables[one] = value if is_setter else unknown(names=[one])
            silent._set_self(method, state, Value(Kind.ON, target=Instance(owner)))
            silent._body(method, state, frame)
        return self.knowledge.writes[key]

    def assign(self, target: ast.expr, value: Value, state: Scope, frame: Activation) -> None:
        """Assign a value to a variable, an attribute, or the parts of a tuple."""
        if isinstance(target, ast.Name):
            state.variables[target.id] = value
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                state.variables[f"self.{target.attr}"] = value
                self.writes.setdefault(target.attr, []).append(value)
                if self.log is not None and not state.is_dead:
                    self.log.wrote(target, value, frame, self.is_training)
            else:
                evaluate(self, target.value, state, frame)
        elif isinstance(target, (ast.Tuple, ast.List)):
            elements = value.target.elements if isinstance(value.target, Container) else ()
            for i, part in enumerate(target.elts):
                fits = len(elements) == len(target.elts)
                self.assign(part, elements[i] if fits else replace(opaque(value), names=frozenset()), state, frame)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, value, state, frame)
        elif isinstance(target, ast.Subscript):
            base = evaluate(self, target.value, state, frame)
            if isinstance(base.target, Container):
                self.assign(target.value, replace(base, target=base.target.with_elements([value])), state, frame)

    def define(self, closure: Closure) -> None:
        """Run a function that was defined within another, as if an unknown caller had called it."""
        is_first = closure.frame.parent is None and closure.function not in self._defined
        if self.log is not None and is_first and self.log.is_interesting(closure.function):
            self._defined.add(closure.function)
            steps = self.steps
            self.run_open(closure.function, closure)
            self.steps = steps

    # Calls

    def call(self, node: ast.Call, state: Scope, frame: Activation) -> Value:
        """Return the result of a call, and record it if it drops."""
        base, function = called(self, node.func, state, frame)
        arguments = Arguments(node, {})
        for one in (*node.args, *(word.value for word in node.keywords)):
            part = one.value if isinstance(one, ast.Starred) else one
            arguments.values[id(part)] = evaluate(self, part, state, frame)
        self.steps += 1
        if self.steps > _STEPS:
            if self.log is not None:
                self.log.cut(frame)
            return unknown(*arguments.values.values())
        return apply(self, function, base, arguments, state, frame)

    def inline(
        self,
        function: Function,
        arguments: Arguments | None,
        instance: Value | None,
        state: Scope,
        frame: Activation,
        closure: Closure | None = None,
    ) -> Value:
        """Return the result of a call of a function of the tree.

        If its arguments can decide whether something drops, it runs once more for this call.
        """
        running = [one.function for one in frame.chain]
        given = {} if arguments is None else arguments.by_parameter(function, instance is not None)
        call = None if arguments is None else arguments.node
        inner = Activation(function.source, function, function.owner, frame, call, given, closure)
        is_deep = len(running) > _DEPTH
        if self.log is None or is_deep or function in running or not self.log.hands_on(function):
            if self.log is not None and is_deep and function not in running and self.log.hands_on(function):
                self.log.cut(frame)
            return inner.in_terms_of_caller(self._summary(function, closure))
        variables = {}
        for name, default in function.every_parameter.items():
            value = given.get(name)
            if value is None:
                value = opaque(names=[name])
                if default is not None:
                    value = evaluate(self, default, Scope(), Activation(function.source))
            variables[name] = replace(value, params=frozenset({name}))
        scope = Scope(variables, is_doubtful=state.is_doubtful)
        if instance is not None:
            self._set_self(function, scope, instance)
        result = self._body(function, scope, inner)
        return inner.in_terms_of_caller(result)

    def _summary(self, function: Function, closure: Closure | None) -> Value:
        """Return what a function returns, whoever calls it."""
        key = self.is_training, function
        if key not in self.knowledge.results and self.knowledge.depth < _DEPTH:
            self.knowledge.results[key] = opaque(names=[f"{function.name}()"])
            self.knowledge.depth += 1
            silent = Interpreter(self.is_training, knowledge=self.knowledge)
            result = silent.run_open(function, closure)
            self.knowledge.results[key] = (
                result if result.kind is not Kind.OPAQUE or result.names else self.knowledge.results[key]
            )
            self.knowledge.depth -= 1
        return self.knowledge.results.get(key, opaque(names=[f"{function.name}()"]))
