"""The check of one file: entries, verdicts and mistakes."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from puredrop.linting.source.interpreter import Interpreter, Knowledge
from puredrop.linting.source.log import Log
from puredrop.linting.source.modules import Function, Source
from puredrop.linting.source.patterns import patterns
from puredrop.linting.source.verdicts import Outcome, outcomes

__all__ = ["Checked", "check_file"]


@dataclass(frozen=True)
class Checked:
    """Outcomes of one file, and the functions of the tree that it calls.

    Args:
        outcomes: verdicts, in each context.
        callees: file and line of functions that are called.
        open_names: names of functions whose callers decide whether they drop.
    """

    outcomes: tuple[Outcome, ...] = ()
    callees: frozenset[tuple[str, int]] = frozenset()
    open_names: frozenset[str] = frozenset()


def check_file(source: Source, names: Iterable[str] = ()) -> Checked:
    """Return the verdicts on a file.

    Args:
        source: the file.
        names: names of functions of other files whose callers decide whether they drop.
    """
    log = Log([*names, *_handed_on(source)])
    entries = [one for one in _functions(source) if log.is_interesting(one)]
    knowledge = Knowledge()
    for is_training in (True, False):
        run = Interpreter(is_training, log, knowledge)
        for function in entries:
            try:
                run.run_open(function)
            except RecursionError:
                log.too_deep.append(function)
        run.run_file(source)
    found = (*outcomes(log), *patterns(source, log, knowledge))
    return Checked(found, frozenset(log.callees), frozenset(_open_names(source, log)))


def _functions(source: Source) -> list[Function]:
    """Return the functions and methods of a file that are not defined within a function."""
    own = [*source.functions.values()]
    return [*own, *(method for owner in source.every_class for method in owner.methods.values())]


def _handed_on(source: Source) -> list[str]:
    """Return names of functions and attributes of this file that stand for something that may drop."""
    plain = Log()
    names = [name for name, one in source.functions.items() if plain.is_interesting(one)]
    for owner in source.every_class:
        names += [name for name, one in owner.methods.items() if name not in _COMMON and plain.is_interesting(one)]
    return names


_COMMON = ("__init__", "forward", "__call__", "train", "eval", "__repr__", "extra_repr", "reset_parameters")


def _open_names(source: Source, log: Log) -> list[str]:
    """Return names under which other files may call functions of this one that can drop."""
    names = [name for name, one in source.functions.items() if log.is_interesting(one)]
    return [name for name in names if any(_is_handed(one) for one in [source.functions[name]])]


def _is_handed(function: Function) -> bool:
    """Return whether a function takes anything that could switch dropout on or off."""
    return any(isinstance(one, ast.arg) for one in (*function.node.args.args[1:], *function.node.args.kwonlyargs))
