"""Tables for terminals, numbers with their nouns, lists that errors name, and the first line of an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["counted", "first_line", "listed", "one_line", "printable", "table"]

_SHOWN = 6


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of equally many cells as lines, each column padded to its widest cell."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is given in the singular."""
    return f"{number} {noun}{'s' * (number != 1)}"


def listed(names: Iterable[object], shown: int = _SHOWN, separator: str = ", ") -> str:
    """Return names for an error, in their order: the first ones, and how many more there are."""
    every = list(map(str, names))
    more = f" and {len(every) - shown:,} more" if len(every) > shown else ""
    return separator.join(every[:shown]) + more


def printable(text: str) -> str:
    """Return a text with escapes for line breaks and control characters, such as in a name that a user gives."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def first_line(error: BaseException, limit: int | None = None) -> str:
    """Return the first line of an error's text, at most `limit` characters; the name of its class if it has no text."""
    lines = str(error).splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def one_line(error: BaseException, plain: tuple[type[BaseException], ...] = (ValueError,)) -> str:
    """Return an error's whole text as one line, after the name of its class unless that is among `plain`."""
    text, name = " ".join(str(error).split()), type(error).__name__
    return text if text and isinstance(error, plain) else f"{name}: {text}" if text else name
