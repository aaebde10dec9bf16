"""The check of one file: entries, verdicts and mistakes."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from puredrop.linting.source.interpreter import Interpreter, Knowledge
from puredrop.linting.source.log import Log, is_switched
from puredrop.linting.source.modules import Class, Function, Source, last_name
from puredrop.linting.source.patterns import patterns
from puredrop.linting.source.verdicts import Outcome, outcomes

__all__ = ["Checked", "check_file"]


@dataclass(frozen=True)
class Checked:
    """Outcomes of one file.

    Args:
        outcomes: verdicts, in each context.
        open_names: names of functions whose callers decide whether they drop.
    """

    outcomes: tuple[Outcome, ...] = ()
    open_names: frozenset[str] = frozenset()


def check_file(source: Source, names: Iterable[str] = ()) -> Checked:
    """Return the verdicts on a file.

    Args:
        source: the file.
        names: names of functions of other files whose callers decide whether they drop.
    """
    log = Log(_handed_on(source, names))
    entries = [(one, owner) for one, owner in _functions(source) if log.is_interesting(one)]
    knowledge = Knowledge()
    for is_training in (True, False):
        run = Interpreter(is_training, log, knowledge)
        for function, owner in entries:
            try:
                run.run_open(function, owner=owner)
            except RecursionError:
                log.too_long.setdefault(function)
        run.run_file(source)
    found = (*outcomes(log), *patterns(source, log, knowledge))
    return Checked(found, frozenset(_open_names(source, log)))


def _functions(source: Source) -> Iterator[tuple[Function, Class | None]]:
    """Yield the functions and methods of a file that are not defined within a function, methods with their class.

    A class that sets values of its own has the methods that it inherits, too: they may drop by these values.
    """
    yield from ((function, None) for function in source.functions.values())
    for owner in source.every_class:
        yield from ((method, owner) for method in owner.methods.values())
        if _sets_values(owner):
            names = {name for ancestor in owner.lineage[1:] for name in ancestor.methods} - set(owner.methods)
            yield from ((method, owner) for name in sorted(names) if (method := owner.method(name)) is not None)


def _sets_values(owner: Class) -> bool:
    """Return whether a derived class assigns an attribute that an ancestor has."""
    inherited = {name for one in owner.lineage[1:] for name in (*one.writers, *one.constants)}
    own = {name for method in owner.methods.values() for name in method.assigned} | set(owner.own_constants)
    return not inherited.isdisjoint(own)


def _handed_on(source: Source, names: Iterable[str]) -> set[str]:
    """Return the names of functions, classes and attributes that stand for something that may drop."""
    every = {*names, *source.aliases}
    while True:
        log = Log(every)
        new = {name for name, one in source.functions.items() if log.is_interesting(one)}
        new |= {alias for alias, name in source.imports.items() if name.rpartition(".")[2] in every}
        for owner in source.every_class:
            new |= {name for name, one in owner.methods.items() if name not in _COMMON and log.is_interesting(one)}
            if _is_open(owner, log):
                new.add(owner.node.name)
            new |= _instances(owner, every | new)
        if new <= every:
            return every
        every |= new


_COMMON = ("__init__", "forward", "__call__", "train", "eval", "__repr__", "extra_repr", "reset_parameters")


def _is_open(owner: Class, log: Log) -> bool:
    """Return whether calls of a module's instances can hand on a rate or a flag."""
    forwards = [one for name in ("forward", "__call__") if (one := owner.methods.get(name)) is not None]
    return any(is_switched(one) and log.is_interesting(one) for one in forwards)


def _instances(owner: Class, classes: set[str]) -> set[str]:
    """Return the attributes that a class assigns instances of some classes to."""
    return {
        target.attr
        for node in ast.walk(owner.node)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and any(last_name(one) in classes for one in ast.walk(node.value))
    }


def _open_names(source: Source, log: Log) -> set[str]:
    """Return names under which other files may call what this one defines and arguments switch."""
    names = {name for name, one in source.functions.items() if is_switched(one) and log.is_interesting(one)}
    return names | {owner.node.name for owner in source.every_class if _is_open(owner, log)}
