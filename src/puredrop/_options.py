"""Options of the command line, declared once as the fields of a dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["add_options", "flag", "names", "numbers", "option", "rate_range", "read_options"]

_T = TypeVar("_T", bound="DataclassInstance")


def option(default: Any, help: str, *, group: str = "", positional: bool = False, **argument: Any) -> Any:
    """Declare a field of a dataclass that is an option of a command, too.

    Args:
        default: its value where the user gives none; `dataclasses.MISSING` for an option that must be given.
        help: the text in the command's --help.
        group: heading that the option stands under in --help.
        positional: whether the value stands on the command line without the option's name.
        argument: what `argparse.ArgumentParser.add_argument` takes besides: type, metavar, choices, nargs.
    """
    return field(default=default, metadata={"help": help, "group": group, "positional": positional, **argument})


def flag(name: str) -> str:
    """Return how a field is written on the command line."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: argparse.ArgumentParser, kind: type[DataclassInstance]) -> None:
    """Add the fields of a dataclass to a command's parser, in their order."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for declared in fields(kind):
        title = declared.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(*_flags(declared), **_argument(declared))


def _flags(declared: Field[Any]) -> tuple[str, ...]:
    return (declared.name if declared.metadata["positional"] else flag(declared.name),)


def _argument(declared: Field[Any]) -> dict[str, Any]:
    argument = {name: value for name, value in declared.metadata.items() if name not in ("group", "positional")}
    if declared.default is False:
        argument["action"] = "store_true"
    elif declared.default is not MISSING:
        argument["default"] = declared.default
    elif not declared.metadata["positional"]:
        argument["required"] = True
    return argument


def read_options(kind: type[_T], arguments: argparse.Namespace) -> _T:
    """Make the dataclass from a parsed command line."""
    return kind(**{declared.name: getattr(arguments, declared.name) for declared in fields(kind)})


def numbers(kind: Callable[[str], float], example: str) -> Callable[[str], tuple[float, ...]]:
    """Return a parser of numbers with commas between, for the `type` of an option."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(number) for number in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected numbers with commas between, such as {example}"
            ) from None

    return parse


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated text into names."""
    return tuple(text.split(","))


def rate_range(text: str) -> tuple[float, ...]:
    """Parse start:stop:step into all numbers from start to stop, both included."""
    try:
        start, stop, step = map(float, text.split(":"))
        count = round((stop - start) / step) + 1
        return tuple(round(start + i * step, 6) for i in range(count))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r}; expected start:stop:step, such as 0:0.8:0.1") from None
