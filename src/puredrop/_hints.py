"""Errors that say what to type instead of an argument that a call does not have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["hints"]

P = ParamSpec("P")
T = TypeVar("T")


def hints(**texts: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that a likely wrong argument raises a TypeError which names the right one.

    Args:
        texts: name of the argument that users try -> what to type instead; "{value}" stands for the value given.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in texts.keys() & kwargs.keys():
                call = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
                advice = texts[name].replace("{value}", repr(kwargs[name]))
                raise TypeError(f"{call} has no argument {name}; {advice}")
            return function(*args, **kwargs)

        return checked

    return decorate
