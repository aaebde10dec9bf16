"""Repair of mistakes by edits of the text that keep its layout."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from puredrop._files import write
from puredrop.linting._findings import Finding
from puredrop.linting.source.calls import CALLS
from puredrop.linting.source.checking import check_text
from puredrop.linting.source.modules import Class, Project, Source
from puredrop.linting.source.verdicts import Position, place_of

__all__ = ["fix_files", "fix_text"]


@dataclass(frozen=True)
class _Edit:
    """Replacement of the bytes between two positions, (line from 1, byte column from 0)."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def fix_files(files: list[str]) -> None:
    """Mend in files what can be mended safely."""
    for file in files:
        if not file.endswith(".py"):
            continue
        try:
            before = Path(file).read_bytes().decode("utf-8")
            after = fix_text(before)
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # the check that follows says so
        if after != before:
            path = Path(file)
            write(path.resolve() if path.is_symlink() else path, after.encode())  # a link stays one


def fix_text(text: str) -> str:
    """Return a source text with the mistakes mended that can be mended safely.

    In methods of modules, a call without a training flag gets `training=self.training`, `training=self.train` becomes
    `self.training`, and a rate of attention gets `if self.training else 0.0`. An edit that does not end its finding is
    not made.
    """
    for finding in reversed(check_text(text)):
        if finding.code in ("PD101", "PD102"):
            changed = _fixed(text, finding)
            if changed is not None and not _is_found(changed, finding):
                text = changed
    return text


def _is_found(text: str, finding: Finding) -> bool:
    try:
        return any((one.line, one.column) == (finding.line, finding.column) for one in check_text(text))
    except SyntaxError:
        return True


def _fixed(text: str, finding: Finding) -> str | None:
    """Return the text with one finding mended; None if that is not safe."""
    source = Source(finding.file, text, Project([finding.file]))
    place = Position(finding.file, finding.line, finding.column)
    for owner in source.every_class:
        for node in ast.walk(owner.node):
            if isinstance(node, ast.Call) and place_of(source, node) == place:
                edit = _edit(source, owner, node)
                return None if edit is None else _applied(text, edit)
    return None


def _edit(source: Source, owner: Class, node: ast.Call) -> _Edit | None:
    name = source.refers_to(node.func)
    dropper = CALLS.get(name) if isinstance(name, str) else None
    starred = any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords)
    if dropper is None or starred or not owner.is_module or not _has_self(owner, node):
        return None
    position, keyword = (dropper.rate, dropper.rate_name) if dropper.flag is None else (dropper.flag, dropper.flag_name)
    value = next((one.value for one in node.keywords if one.arg == keyword), None)
    if value is None and len(node.args) > position:
        value = node.args[position]
    if dropper.flag is None:
        if value is None or isinstance(value, (ast.IfExp, ast.Lambda, ast.NamedExpr)):
            return None
        return _Edit(_end(value), _end(value), " if self.training else 0.0")
    if value is None:
        return _insertion(source, node, f"{keyword}=self.training")
    if ast.unparse(value) == "self.train":
        return _Edit(_end(value), _end(value), "ing")
    return None


def _has_self(owner: Class, node: ast.Call) -> bool:
    """Return whether a call stands in a method of a built instance, `self`, and in no function within it."""
    for method in owner.methods.values():
        if method.name == "__init__" or method.decorators & {"staticmethod", "classmethod"}:
            continue
        if next(iter(method.parameters), None) == "self" and node in set(ast.walk(method.node)):
            inner = [one for one in ast.walk(method.node) if isinstance(one, (ast.FunctionDef, ast.Lambda))]
            return not any(node in set(ast.walk(one)) for one in inner if one is not method.node)
    return False


def _end(node: ast.expr | ast.keyword) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _insertion(source: Source, node: ast.Call, argument: str) -> _Edit:
    """Return the insertion of one more argument, laid out like the others."""
    given: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
    last = max(given, key=_end)
    line, column = _end(last)
    rest = source.lines[line - 1].encode()[column:].decode()
    comma = re.match(r"\s*,\s*(?:#.*)?$", rest)
    if comma is not None and last.lineno > node.lineno:
        # Each argument stands on a line of its own, and the last one has a comma too.
        indent = re.match(r"\s*", source.lines[last.lineno - 1])
        assert indent is not None
        end = line, column + len(rest.rstrip().encode())
        newline = "\r\n" if source.lines[line - 1].endswith("\r") else "\n"
        return _Edit(end, end, f"{newline}{indent[0]}{argument},")
    return _Edit((line, column), (line, column), f", {argument}")


def _applied(text: str, edit: _Edit) -> str:
    lines = text.split("\n")
    (line, column), (last, end) = edit.start, edit.end
    before, after = lines[line - 1].encode()[:column].decode(), lines[last - 1].encode()[end:].decode()
    return "\n".join([*lines[: line - 1], before + edit.text + after, *lines[last:]])
