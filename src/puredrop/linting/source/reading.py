"""Texts of files and notebooks, and which of them could drop."""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

from puredrop.linting.source.calls import WORDS
from puredrop.linting.source.notebook import read_notebook

__all__ = ["Text", "UnreadableError", "could_drop", "read_text"]

LIMIT = 3_000_000
"""Characters of code; longer files are generated, and are not read."""


class UnreadableError(Exception):
    """A file that cannot be read as Python.

    Args:
        reason: why, in a few words.
        line: line of the file, from 1; 0 if none is known.
        cell: cell of a notebook, from 1; 0 if none.
    """

    def __init__(self, reason: str, line: int = 0, cell: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.line, self.cell = reason, line, cell


@dataclass(frozen=True)
class Text:
    """Code of a file.

    Args:
        code: Python source; that of all cells of a notebook, one after the other.
        cells: for each line of a notebook's code, its cell and the line in that cell; None for other files.
        broken: cells that cannot be read, with the reason.
    """

    code: str
    cells: tuple[tuple[int, int], ...] | None = None
    broken: tuple[tuple[int, str], ...] = ()


def could_drop(file: str) -> bool:
    """Return whether a file has any of the words of calls that drop; most files are ruled out here."""
    try:
        data = Path(file).read_bytes()
    except OSError:
        return True  # reading it says why not
    return any(word.encode() in data for word in WORDS)


def read_text(file: str) -> Text:
    """Return the code of a file.

    Raises:
        UnreadableError: if the file cannot be read.
    """
    try:
        data = Path(file).read_bytes()
        encoding = "utf-8" if file.endswith(".ipynb") else tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        text = io.TextIOWrapper(io.BytesIO(data), encoding).read()
        text = text.removeprefix("\ufeff")
        result = Text(text)
        if file.endswith(".ipynb"):
            notebook = read_notebook(text)
            result = Text(notebook.text, notebook.lines, notebook.broken)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except (UnicodeDecodeError, SyntaxError, LookupError) as error:
        raise UnreadableError(error.msg if isinstance(error, SyntaxError) else str(error)) from error
    if len(result.code) > LIMIT:
        raise UnreadableError(
            f"{len(result.code) / 1e6:.0f} million characters; more than {LIMIT // 1_000_000} are not read"
        )
    return result
