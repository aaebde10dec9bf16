"""Verdicts on calls that drop: off in eval mode, on, or not decided, and whose mistake it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from puredrop.linting.source.activation import Activation, Observation
from puredrop.linting.source.log import Log
from puredrop.linting.source.modules import Source
from puredrop.linting.source.values import (
    Kind,
    Value,
    as_switch,
    constant,
    is_keep_name,
    is_rate_name,
    text_of,
)

__all__ = ["Outcome", "Position", "is_ignored", "is_test", "is_test_file", "outcomes", "place_of", "wrong_rate"]

_IGNORE = re.compile(r"#.*?\bpuredrop:\s*ignore(?:\[([A-Z0-9, ]+)\])?")
_NOQA = re.compile(r"#.*?\bnoqa:\s*([A-Z]+[0-9]+(?:[, ]+[A-Z]+[0-9]+)*)", re.IGNORECASE)
_PURPOSE = re.compile(
    r"mc_?drop|monte.?carlo|bayes|uncertain|always (?:on|active|appl|drop|use)|on purpose|intention|deliberate|prenet|"
    r"(?:even|also|both)[\w ]{0,20}(?:eval|inference|test)|(?:eval|inference|test)\w*[\w ,]{0,12}(?:too|as well)|"
    r"(?:stay|kept|keep)s? (?:it |dropout )?on\b|(?:under|during|in) \W{0,3}eval|at (?:inference|test)",
    re.IGNORECASE,
)
_OF_TRAINING = re.compile(r"_(train|training|warmup)$|^_?warmup|^train_step$|^training_step$")
_LOOPS = re.compile(r"train(_\w+)?|fit(_\w+)?|collate(_\w+)?|__getitem__")
_DENIES = re.compile(r"\b(?:not|never|no|todo|fixme|bug|wrong)\b|n't\b", re.IGNORECASE)
_KNOWN = re.compile(r"prenet|mc_?drop|monte.?carlo|(?:^|[_ ])mc_", re.IGNORECASE)
_ASKS = re.compile(r"_?(use|apply|do|with|is|has|enable|add|no|mc|force)_.*|.*_(on|enabled|training|train|flag|mode)")


@dataclass(frozen=True)
class Position:
    """A place in a file; lines and columns count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True)
class Outcome:
    """Verdict on a call in one context.

    Args:
        place: the call that drops.
        verdict: "off", "on", "unknown"; or "open" if only callers decide.
        code: code of the mistake.
        blame: where the mistake is made: the call itself, or a call that leads to it.
        detail: facts about the call.
        is_soft: whether the call itself is to blame, unless some other caller switches it off.
        is_ignored: whether a comment says to leave it.
        is_switched: whether its rate is 0 in eval mode and not in training mode.
        depth: number of calls that lead to it, in this context.
    """

    place: Position
    verdict: str
    code: str = ""
    blame: Position | None = None
    detail: str = ""
    is_soft: bool = False
    is_ignored: bool = False
    is_switched: bool = False
    depth: int = 0


def place_of(source: Source, node: ast.AST) -> Position:
    """Return the place of a node."""
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    return Position(source.file, line, len(source.lines[line - 1].encode()[:column].decode(errors="ignore")) + 1)


def is_ignored(source: Source, node: ast.AST, code: str) -> bool:
    """Return whether a comment on the lines of a node says to leave a code."""
    text = source.segment(node)
    for match in (*_IGNORE.finditer(text), *_NOQA.finditer(text)):
        if match[1] is None or code in re.split(r"[, ]+", match[1].upper()):
            return True
    return False


def is_test_file(file: str) -> bool:
    """Return whether a file holds tests, by its name."""
    return re.fullmatch(r"test_.*|.*_tests?\.py|conftest\.py", Path(file).name) is not None


def is_test(frame: Activation) -> bool:
    """Return whether code is no part of a model: that of a file itself, of a script's function, or of a test."""
    outer = frame.outermost
    if outer.function is None or (outer.owner is None and not outer.function.every_parameter):
        return True
    if outer.owner is not None and outer.owner.is_module:
        return is_test_file(outer.source.file)
    is_named = outer.function.name.startswith("test") or (outer.owner and outer.owner.node.name.startswith("Test"))
    return bool(is_named) or is_test_file(outer.source.file)


def outcomes(log: Log) -> Iterator[Outcome]:
    """Yield the verdict on each call in each context."""
    training, evaluated = log.reached[True], log.reached[False]
    for key in dict.fromkeys((*training, *evaluated)):
        yield replace(_outcome(training.get(key), evaluated.get(key)), depth=len(key))


def _outcome(on: Observation | None, off: Observation | None) -> Outcome:
    """Return the verdict on a call that was observed in training mode and in eval mode."""
    observation = on or off
    assert observation is not None
    place = place_of(observation.frame.source, observation.node)
    if is_test(observation.frame):
        return Outcome(place, "off")
    wrong = wrong_rate(observation.rate)
    if wrong is not None:
        return _found(
            observation,
            wrong,
            f"p={_text(observation, observation.dropper.rate, observation.dropper.rate_name)}",
            observation.rate,
        )
    if off is None or Kind.OFF in (off.rate.kind, off.flag.kind if off.flag else Kind.ON):
        is_switched = on is not None and off is not None and on.rate.can_be_on and not off.rate.can_be_on
        return replace(_never(place, on), is_switched=is_switched) if on is not None else Outcome(place, "off")
    return _in_eval(place, on, off)


def wrong_rate(rate: Value) -> str | None:
    """Return the code of a rate that is something else by its name."""
    if rate.is_flag or rate.const is True:
        return "PD304"
    return "PD305" if any(is_keep_name(name) for name in rate.names) else None


def _never(place: Position, on: Observation) -> Outcome:
    """Return the verdict on a call that is off in eval mode; it may be off in training mode too."""
    flag, function = on.flag, on.frame.function
    if function is not None and function.name in ("__init__", "setup", "reset_parameters"):
        return Outcome(place, "off")
    if flag is None or flag.kind is not Kind.OFF or flag.params or not on.rate.can_be_on or on.is_doubtful:
        return Outcome(place, "off")
    said = _text(on, on.dropper.flag, on.dropper.flag_name) if on.has_flag else "not given, and its default is False"
    return _found(on, "PD202", f"{on.dropper.flag_name} is {said}", flag if on.has_flag else constant(False))


def _in_eval(place: Position, on: Observation | None, off: Observation) -> Outcome:
    """Return the verdict on a call that may drop in eval mode."""
    flag, rate, code = off.flag, off.rate, off.dropper.code
    if flag is not None and flag.kind in (Kind.OPAQUE, Kind.UNKNOWN):
        if _is_rate(flag):
            said = _text(off, off.dropper.flag, off.dropper.flag_name)
            return _found(off, code, f"{off.dropper.flag_name} is given a rate, {said}", flag)
        is_option = flag.kind is Kind.OPAQUE and bool(flag.names)
        if is_option and on is not None and on.flag is not None and on.flag.kind is Kind.ON:
            return Outcome(place, "off")  # it follows the mode unless an option asks for more
        return _undecided(off, flag, off.dropper.flag_name)
    if rate.kind is Kind.UNKNOWN or (rate.kind is Kind.OPAQUE and any(name.endswith("()") for name in rate.names)):
        return _undecided(off, rate, off.dropper.rate_name)
    if _is_on_purpose(off):
        return Outcome(place, "off")
    if off.is_doubtful:
        return _undecided(off, Value(Kind.UNKNOWN), "the condition around it")
    return _on(place, off)


def _is_rate(value: Value) -> bool:
    if isinstance(value.const, float):
        return True
    names = value.names
    return bool(names) and all(
        is_rate_name(one) and not _ASKS.fullmatch(one) and as_switch(one) is None for one in names
    )


def _is_loop(frame: Activation) -> bool:
    """Return whether code is a training loop or makes batches, outside of any module."""
    in_module = frame.owner is not None and frame.owner.is_module
    return frame.function is not None and not in_module and _LOOPS.fullmatch(frame.function.name) is not None


def _is_on_purpose(observation: Observation) -> bool:
    """Return whether names or comments say that it is meant: any reason for training=True, else known methods."""
    if _is_loop(observation.frame.outermost):
        return True
    if any(
        frame.function is not None and _OF_TRAINING.search(frame.function.name) for frame in observation.frame.chain
    ):
        return True
    is_written = observation.has_flag and observation.flag is not None and observation.flag.const is True
    if observation.has_flag and not is_written:
        return False
    source, owner, function = observation.frame.source, observation.frame.owner, observation.frame.function
    line = observation.node.lineno
    near = source.lines[max(line - 4, 0) : (observation.node.end_lineno or line)]
    comments = [said for text in near if not _DENIES.search(said := text.partition("#")[2])]
    names = [
        owner.node.name if owner else "",
        function.name if function else "",
        source.lines[line - 1].partition("#")[0],
    ]
    says = _PURPOSE if is_written else _KNOWN
    return any(says.search(text) for text in (*comments, *names))


def _on(place: Position, off: Observation) -> Outcome:
    """Return the verdict on a call that drops in eval mode."""
    rate, code = off.rate, off.dropper.code
    given = _text(off, off.dropper.rate, off.dropper.rate_name)
    if off.dropper.flag is None:
        if code == "PD105":
            return _found(off, code, f"p={given}", off.flag or rate)
        return _found(off, code, f"{off.dropper.rate_name}={given}, whatever the mode", rate, may_be_open=True)
    if off.has_flag and off.flag is not None:
        said = _text(off, off.dropper.flag, off.dropper.flag_name)
        return _found(off, code, f"{off.dropper.flag_name}={said}", off.flag)
    found = _found(off, code, f"{off.dropper.flag_name} is not given", rate, may_be_open=True)
    if found.blame == place or found.verdict == "open":
        return found
    return replace(found, is_soft=True)


def _undecided(observation: Observation, value: Value, what: str) -> Outcome:
    """Return that a call is not decided, or that its callers decide."""
    node, frame, value = _origin(observation, value)
    place = place_of(observation.frame.source, observation.node)
    if value.params and frame.function is not None and frame.parent is None:
        if value.params <= frame.function.collecting or (
            observation.dropper.flag is not None and what == observation.dropper.flag_name
        ):
            return Outcome(place, "off")  # the caller hands on the flag, or every argument
        return _of_caller(observation, place, frame, value, observation.dropper.code, f"{what} comes from the caller")
    positions = {
        observation.dropper.rate_name: observation.dropper.rate,
        observation.dropper.flag_name: observation.dropper.flag,
    }
    detail = f"{what}={_text(observation, positions[what], what)}" if what in positions else what
    return Outcome(
        place,
        "unknown",
        "PD002",
        place_of(frame.source, node),
        detail,
        is_ignored=_says(observation, node, frame, "PD002"),
    )


def _found(observation: Observation, code: str, detail: str, deciding: Value, may_be_open: bool = False) -> Outcome:
    """Return that a call is a mistake, at the place where the deciding value comes from."""
    node, frame, value = _origin(observation, deciding)
    place = place_of(observation.frame.source, observation.node)
    if may_be_open and value.params and frame.function is not None and frame.parent is None:
        return _of_caller(observation, place, frame, value, code, detail)
    blame = place_of(frame.source, node)
    if blame != place:
        detail += (
            f" in {observation.frame.function.name if observation.frame.function else ''} ({place.file}:{place.line})"
        )
    return Outcome(place, "on", code, blame, detail, is_ignored=_says(observation, node, frame, code))


def _of_caller(
    observation: Observation, place: Position, frame: Activation, value: Value, code: str, detail: str
) -> Outcome:
    """Return the verdict where the rate is a parameter of a function whose callers are not known."""
    assert frame.function is not None
    defaults = [frame.function.every_parameter.get(name) for name in value.params]
    constants = [one.value for one in defaults if isinstance(one, ast.Constant)]
    if len(constants) == len(defaults) and all(constants):
        return Outcome(
            place, "on", code, place, detail, is_ignored=_says(observation, observation.node, observation.frame, code)
        )
    if constants and not any(constants) and observation.dropper.flag is None:
        return Outcome(place, "off")  # off unless the caller asks
    return Outcome(place, "open", "PD002", place, "the rate comes from the caller")


def _origin(observation: Observation, value: Value) -> tuple[ast.AST, Activation, Value]:
    """Return the call that a value comes from, its frame, and the value in terms of that frame."""
    node, frame = observation.node, observation.frame
    while value.params and frame.parent is not None and frame.call is not None:
        given = [frame.given[name] for name in value.params if name in frame.given]
        node, frame = frame.call, frame.parent
        value = max(given, key=lambda one: len(one.params)) if given else Value(Kind.ON)
    return node, frame, value


def _says(observation: Observation, node: ast.AST, frame: Activation, code: str) -> bool:
    return is_ignored(frame.source, node, code) or is_ignored(observation.frame.source, observation.node, code)


def _text(observation: Observation, position: int | None, name: str) -> str:
    """Return an argument of a call as it is written; "its default" if it is not given."""
    for one in observation.node.keywords:
        if one.arg == name:
            return text_of(one.value)
    if position is not None and position < len(observation.node.args):
        return text_of(observation.node.args[position])
    return "its default"
