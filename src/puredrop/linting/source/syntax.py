"""Trees of source texts in the syntax of Python 3.6 to 3.14, whichever Python reads them."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

__all__ = ["Parsed", "parse"]

_TRIES = 50


@dataclass(frozen=True)
class Parsed:
    """Syntax tree of a text.

    Args:
        tree: the tree; its nodes have the positions that they have in the text.
        old: first line on which `async` or `await`, keywords since Python 3.7, is a name; 0 if there is none.
    """

    tree: ast.Module
    old: int = 0


def parse(text: str) -> Parsed:
    """Return the syntax tree of a text.

    What this Python cannot read but another version of Python 3 can is replaced by something as long: names `async` and
    `await` (until 3.6), type parameters and `type` statements (3.12), fields of f-strings with quotes of the same kind
    (3.12), t-strings and `except` without parentheses (3.14). None of these can drop.

    Raises:
        SyntaxError: if no version reads the text.
    """
    text, old = text.removeprefix("\ufeff"), 0
    for _ in range(_TRIES):
        try:
            return Parsed(_tree(text), old)
        except SyntaxError as error:
            at, older = _mended(text, error.lineno or 1)
            if older is None:
                raise
            old = old or (at if _keyword_names(text) != text and older.count("asinc") + older.count("awayt") else 0)
            text = older
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error) or "nested too deeply") from error
    return Parsed(_tree(text), old)


def _tree(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python thinks of the user's literals is not asked
        return ast.parse(text)


def _mended(text: str, number: int) -> tuple[int, str | None]:
    """Return a text with newer or older syntax replaced near a line, and that line; None if there is none."""
    lines = text.split("\n")
    for at in range(min(number, len(lines)) - 1, max(number - 12, -1), -1):
        for rule in (_keyword_names, _except, _type_statement, _type_parameters):
            changed = rule(lines[at])
            if changed != lines[at]:
                return at + 1, "\n".join([*lines[:at], changed, *lines[at + 1 :]])
    changed = _strings(text)
    return number, None if changed == text else changed


def _keyword_names(line: str) -> str:
    return _OLD_NAMES.sub(lambda word: "asinc" if word[0] == "async" else "awayt", line)


_OLD_NAMES = re.compile(r"\basync\b(?!\s+(?:def|for|with)\b)|\bawait\b(?=\s*(?:[=,.):]|$))")
"""Names that are keywords since Python 3.7."""


def _except(line: str) -> str:
    match = re.match(r"(\s*except\*?\s+)([\w.]+)((?:\s*,\s*[\w.]+)+)(\s*:.*)$", line, re.DOTALL)
    return line if match is None else match[1] + match[2] + " " * len(match[3]) + match[4]


def _type_statement(line: str) -> str:
    return re.sub(r"^(\s*)type (?=\s*\w+\s*[\[=])", r"\1pass;", line)


def _type_parameters(line: str) -> str:
    match = re.match(r"(\s*(?:(?:async\s+)?def|class|pass;)\s*\w+\s*)\[", line)
    if match is None:
        return line
    depth = 0
    for end in range(match.end() - 1, len(line)):
        depth += (line[end] == "[") - (line[end] == "]")
        if depth == 0:
            return line[: match.end() - 1] + " " * (end + 2 - match.end()) + line[end + 1 :]
    return line


_START = re.compile(r"""(?<![\w"'])([rRbBuU]?[fFtT][rR]?|[rRbBuU]{0,2})(\"\"\"|'''|"|')""")


def _strings(text: str) -> str:
    """Return a text whose f-strings and t-strings hold 0 in each field."""
    parts: list[str] = []
    at = 0
    while True:
        comment = re.compile(r"#[^\n]*").search(text, at)
        match = _START.search(text, at)
        if match is None:
            return "".join([*parts, text[at:]])
        if comment is not None and comment.start() < match.start():
            parts.append(text[at : comment.end()])
            at = comment.end()
            continue
        has_fields = bool(set(match[1].lower()) & {"f", "t"})
        end = _end_of_string(text, match.end(), match[2], has_fields, "r" in match[1].lower())
        body = text[match.start() : end]
        parts += [text[at : match.start()], _without_fields(body, match[1]) if has_fields else body]
        at = end


def _end_of_string(text: str, at: int, quote: str, has_fields: bool, is_raw: bool) -> int:
    """Return the position after a string that was opened before `at`."""
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote, at):
            return at + len(quote)
        elif has_fields and text.startswith("{{", at):
            at += 2
        elif has_fields and text[at] == "{":
            at = _end_of_field(text, at + 1)
        elif text[at] == "\n" and len(quote) == 1:
            return at
        else:
            at += 1
    return at


def _end_of_field(text: str, at: int) -> int:
    depth = 1
    while at < len(text) and depth:
        match = _START.match(text, at)
        if match is not None:
            at = _end_of_string(text, match.end(), match[2], bool(set(match[1].lower()) & {"f", "t"}), False)
            continue
        depth += (text[at] in "{[(") - (text[at] in "}])")
        at += 1
    return at


def _without_fields(body: str, prefix: str) -> str:
    """Return an f-string as a plain string of the same extent."""
    opening = re.match(r"""\w*("{3}|'{3}|"|')""", body)
    assert opening is not None
    quote = opening[1]
    inner = body[opening.end() : len(body) - len(quote)]
    blank = "".join(letter if letter == "\n" else " " for letter in inner)
    plain = re.sub(r"[fFtT]", "", prefix)
    if "\n" in inner and len(quote) == 1:
        blank = blank.replace("\n", "")  # a field over several lines; the lines after it keep their numbers below
        return plain + quote + blank + quote + "\\\n" * inner.count("\n")
    return " " * (len(prefix) - len(plain)) + plain + quote + blank + quote
