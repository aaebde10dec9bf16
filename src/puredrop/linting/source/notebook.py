"""Code of notebooks as one text, with the cell and line that each of its lines comes from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from puredrop.linting.source.syntax import parse

__all__ = ["Notebook", "read_notebook"]

_MAGIC = re.compile(r"^(\s*)([%!?]|\w+\?{1,2}\s*$).*")

_ASSIGNED = re.compile(r"^(\s*[\w, ]+=\s*)[!%].*")


@dataclass(frozen=True)
class Notebook:
    """Code of a notebook.

    Args:
        text: the code of all cells, one after the other.
        lines: for each line of the text, its cell and its line in the cell, counted from 1.
        broken: cells that are no Python, with the reason; they are not in the text.
    """

    text: str
    lines: tuple[tuple[int, int], ...]
    broken: tuple[tuple[int, str], ...]


def read_notebook(text: str) -> Notebook:
    """Return the code of a notebook in Jupyter's format; cells are counted from 1, with those of text.

    Raises:
        SyntaxError: if the text is not a notebook.
    """
    try:
        record = json.loads(text)
        cells = record["cells"] if "cells" in record else [c for w in record["worksheets"] for c in w["cells"]]
        sources = [
            (number, "".join(cell.get("source", cell.get("input", ""))))
            for number, cell in enumerate(cells, 1)
            if cell.get("cell_type") == "code"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SyntaxError(f"not a notebook in Jupyter's format ({type(error).__name__})") from error
    kept: list[str] = []
    lines: list[tuple[int, int]] = []
    broken: list[tuple[int, str]] = []
    for number, source in sources:
        code = _without_magic(source)
        try:
            parse(code)
        except SyntaxError as error:
            broken.append((number, error.msg))
            continue
        part = code.split("\n")
        kept += part
        lines += [(number, i) for i in range(1, len(part) + 1)]
    return Notebook("\n".join(kept), tuple(lines), tuple(broken))


def _without_magic(source: str) -> str:
    """Return a cell's code without the lines that IPython reads itself."""
    lines = source.split("\n")
    if lines and lines[0].startswith("%%") and not lines[0].startswith(("%%time", "%%capture", "%%prun")):
        return ""
    return "\n".join(_ASSIGNED.sub(r"\1None", _MAGIC.sub(r"\1pass", line)) for line in lines)
