"""Search for mistakes in source code, by its syntax tree, and their repair where that is safe."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider, QualifiedNameProvider

from puredrop._files import write
from puredrop._text import first_line
from puredrop.linting._findings import Finding, Report

__all__ = ["check_paths", "check_source", "fixed_source"]

_ALWAYS_ON = {f"torch.nn.functional.{name}" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")}
_ALWAYS_ON |= {f"puredrop.functional.{name}" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")}
_ATTENTION = {"torch.nn.functional.scaled_dot_product_attention", "puredrop.functional.scaled_dot_product_attention"}
_FUNCTIONS = {name.rpartition(".")[2] for name in _ALWAYS_ON | _ATTENTION}
_LAYERS = re.compile(r"(torch|puredrop)\.nn\.(Alpha|FeatureAlpha|Gaussian)?Dropout[123]?d?")
_IGNORE = re.compile(r"#.*\bpuredrop:\s*ignore(?:\[([A-Z0-9, ]+)\])?")
_TRAINING = cst.parse_expression("self.training")


class _Visitor(cst.CSTTransformer):
    """Visitor that finds mistakes and, on leaving a node, mends those that it can."""

    METADATA_DEPENDENCIES = (PositionProvider, QualifiedNameProvider)

    def __init__(self, file: str, lines: list[str]) -> None:
        super().__init__()
        self.file, self.lines = file, lines
        self.findings: list[Finding] = []
        self._classes: list[bool] = []  # for each enclosing class, whether it is a module
        self._functions: list[tuple[str, bool]] = []  # name, and whether the first parameter is `self`

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802, libcst's names
        names = [self._text(base.value) for base in node.bases]
        self._classes.append(any(name.rpartition(".")[2].endswith(("Module", "Model", "Layer")) for name in names))

    def leave_ClassDef(self, original_node: cst.ClassDef, updated_node: cst.ClassDef) -> cst.ClassDef:  # noqa: N802
        self._classes.pop()
        return updated_node

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802
        first = node.params.params[0].name.value if node.params.params else ""
        self._functions.append((node.name.value, first == "self"))

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:  # noqa: N802
        self._functions.pop()
        return updated_node

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:  # noqa: N802
        if not isinstance(original_node.func, (cst.Name, cst.Attribute)):
            return updated_node
        names = {name.name for name in self.get_metadata(QualifiedNameProvider, original_node.func, ())}
        if (
            names & _ALWAYS_ON
            and not self._says(original_node, "training", 2)
            and not self._is_zero(original_node, "p", 1)
        ):
            if self._report("PD101", original_node) and self._knows_training():
                return _with(updated_node, "training", _TRAINING)
        elif names & _ATTENTION:
            return self._attention(original_node, updated_node)
        elif any(_LAYERS.fullmatch(name) for name in names) and self._functions and self._functions[-1][0] == "forward":
            self._report("PD105", original_node)
        return updated_node

    def _attention(self, node: cst.Call, updated: cst.Call) -> cst.Call:
        """Check a call of attention, whose constant rate nothing can switch off."""
        at = self._argument(node, "dropout_p", 4)
        if at is None or not m.matches(node.args[at].value, m.Float() | m.Integer()):
            return updated
        if self._is_zero(node, "dropout_p", 4) or not self._report("PD102", node) or not self._knows_training():
            return updated
        value = cst.IfExp(test=_TRAINING, body=updated.args[at].value, orelse=cst.Float("0.0"))
        args = list(updated.args)
        args[at] = args[at].with_changes(value=value)
        return updated.with_changes(args=args)

    def _report(self, code: str, node: cst.CSTNode) -> bool:
        """Record a finding, unless a comment on its lines ignores it, and return whether it was recorded."""
        span: Any = self.get_metadata(PositionProvider, node)
        for number in range(span.start.line, span.end.line + 1):
            ignored = _IGNORE.search(self.lines[number - 1])
            if ignored and (ignored[1] is None or code in re.split(r"[, ]+", ignored[1])):
                return False
        self.findings.append(Finding(code, self.file, "", span.start.line, span.start.column + 1, self.file))
        return True

    def _knows_training(self) -> bool:
        return bool(self._classes and self._classes[-1] and self._functions and self._functions[-1][1])

    def _says(self, node: cst.Call, name: str, position: int) -> bool:
        stars = any(argument.star for argument in node.args)  # starred arguments may hold anything
        return stars or self._argument(node, name, position) is not None

    def _argument(self, node: cst.Call, name: str, position: int) -> int | None:
        for i, argument in enumerate(node.args):
            if argument.keyword is not None and argument.keyword.value == name:
                return i
            if argument.keyword is None and not argument.star and i == position:
                return i
        return None

    def _is_zero(self, node: cst.Call, name: str, position: int) -> bool:
        at = self._argument(node, name, position)
        if at is None or not isinstance(node.args[at].value, (cst.Float, cst.Integer)):
            return False
        return float(self._text(node.args[at].value)) == 0

    def _text(self, node: cst.CSTNode) -> str:
        return cst.Module([]).code_for_node(node)


def _with(call: cst.Call, name: str, value: cst.BaseExpression) -> cst.Call:
    """Return the call with one more argument, laid out like the others."""
    args = list(call.args)
    equal = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
    argument = cst.Arg(value=value, keyword=cst.Name(name), equal=equal)
    begin = call.whitespace_before_args
    comma = args[-1].comma if args else None
    end = comma.whitespace_after if isinstance(comma, cst.Comma) else None
    if isinstance(begin, cst.ParenthesizedWhitespace) and isinstance(end, cst.ParenthesizedWhitespace):
        # Each argument stands on a line of its own, and the last one has a comma too.
        between = end.with_changes(last_line=begin.last_line)
        args[-1] = args[-1].with_changes(comma=cst.Comma(whitespace_after=between))
        argument = argument.with_changes(
            comma=cst.Comma(whitespace_after=end.with_changes(first_line=cst.TrailingWhitespace()))
        )
    elif args:
        args[-1] = args[-1].with_changes(comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
    return call.with_changes(args=[*args, argument])


def _run(text: str, file: str) -> tuple[tuple[Finding, ...], str]:
    visitor = _Visitor(file, text.splitlines())
    changed = MetadataWrapper(cst.parse_module(text)).visit(visitor)
    return tuple(sorted(visitor.findings, key=lambda finding: (finding.line, finding.column))), changed.code


def check_source(text: str, file: str = "<text>") -> tuple[Finding, ...]:
    """Find the mistakes in a source text.

    Args:
        text: Python source.
        file: name of the file, for the findings.

    Returns:
        The findings, by line and column.

    Raises:
        libcst.ParserSyntaxError: if the text is not Python.
    """
    return _run(text, file)[0] if _could_drop(text) else ()


def fixed_source(text: str) -> str:
    """Return a source text with the mistakes mended that can be mended safely."""
    return _run(text, "<text>")[1] if _could_drop(text) else text


def _could_drop(text: str) -> bool:
    """Return whether a text calls anything that drops; libcst is slow, so most texts are ruled out here."""
    if "ropout" not in text and "scaled_dot_product_attention" not in text:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of the user's literals is not asked
            tree = ast.parse(text)
    except SyntaxError:
        return True  # libcst then says what is wrong
    forwards = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    layers = (_called(node) for forward in forwards for node in ast.walk(forward))
    functions = (_called(node) for node in ast.walk(tree))
    return any("Dropout" in name for name in layers) or any(name in _FUNCTIONS for name in functions)


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return "" if isinstance(node.func.value, ast.Name) and node.func.value.id == "self" else node.func.attr
    return getattr(node.func, "id", "")


def check_paths(paths: Iterable[Path], fix: bool = False) -> Report:
    """Find the mistakes in source files and in folders of them.

    Args:
        paths: files, or folders that are searched for *.py.
        fix: whether mistakes that can be mended safely are mended; the report then lists the remaining ones.

    Returns:
        The report, with the number of files read.

    Raises:
        ValueError: if a path does not exist or a file is not Python; the message is one line.
    """
    findings: list[Finding] = []
    count = 0
    for path in _files(paths):
        count += 1
        try:
            text = path.read_text(encoding="utf-8")
            if fix and (mended := fixed_source(text)) != text:
                write(path, mended.encode())
                text = mended
            findings += check_source(text, str(path))
        except (cst.ParserSyntaxError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as Python ({first_line(error)})") from error
    return Report(tuple(findings), count)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder (a model is named module:factory)")
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
