"""The check of a source tree, on several processes where there are many files."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from puredrop.linting._findings import Finding, Report
from puredrop.linting.source.file import Checked, check_file
from puredrop.linting.source.joining import findings, places
from puredrop.linting.source.modules import Project, Source
from puredrop.linting.source.reading import Text, UnreadableError, could_drop, read_text
from puredrop.linting.source.targets import find_targets

__all__ = ["Progress", "check_files", "check_paths", "check_text"]

Progress = Callable[[int, int], None]
"""Function of the number of files that were checked so far, and of all."""

_ENOUGH = 40
"""Files from which on other processes are worth their start, about two seconds."""
_COMMON = frozenset(("forward", "__init__", "__call__", "main", "train", "test", "evaluate", "build", "create", "run"))


@dataclass(frozen=True)
class _FileResult:
    """Result of one file."""

    file: str
    checked: Checked = field(default_factory=Checked)
    unread: tuple[Finding, ...] = ()


def check_paths(paths: Iterable[Path], progress: Progress | None = None, processes: int = 1) -> Report:
    """Find the mistakes in source files and notebooks, and in folders of them.

    Args:
        paths: files, or folders that are searched for *.py and *.ipynb.
        progress: called from time to time.
        processes: number of processes, where there are many files.

    Returns:
        The report, with the number of calls that drop, and of files.

    Raises:
        ValueError: if a path does not exist or cannot be read, or a folder holds no source.
    """
    targets = find_targets(map(str, paths))
    if targets.problems:
        raise ValueError(targets.problems[0])
    return check_files(targets.files, progress, processes)


def check_text(text: str, file: str = "<text>") -> tuple[Finding, ...]:
    """Find the mistakes in a source text.

    Raises:
        SyntaxError: if the text is not Python.
    """
    project = Project([file])
    source = Source(file, text, project)
    project.add(source)
    return tuple(_with_text(one, source.lines) for one in findings([check_file(source)]))


def check_files(files: Sequence[str], progress: Progress | None = None, processes: int = 1) -> Report:
    """Find the mistakes in files that belong together; see `check_paths`."""
    candidates = [file for file in files if could_drop(file)]
    with _workers(files, processes if len(candidates) >= _ENOUGH else 1) as run:
        results = {one.file: one for one in _counted(run(candidates, ()), len(candidates), progress)}
        names = frozenset().union(*(one.checked.open_names for one in results.values())) - _COMMON
        callers = _callers(files, names)
        results |= {one.file: one for one in run(callers, tuple(sorted(names)))}
    checked = [one.checked for one in results.values()]
    found = [_placed(one, text) for text, group in _by_file(findings(checked)) for one in group]
    unread = [finding for one in results.values() for finding in one.unread]
    ordered = sorted([*unread, *found], key=lambda one: (one.file, one.cell, one.line, one.column, one.code))
    return Report(tuple(ordered), places(checked), len(files))


def _callers(files: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the files that import functions whose callers decide whether they drop."""
    every = [name for name in names if len(name) > 1]
    if not every:
        return []
    listed = "|".join(map(re.escape, sorted(every)))
    imported = re.compile(rf"\bimport\b[^#]*?\b(?:{listed})\b|\.(?:{listed})\(".encode())
    return [file for file in files if imported.search(_bytes(file))]


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


_Run = Callable[[Sequence[str], tuple[str, ...]], Iterator[_FileResult]]


@contextmanager
def _workers(files: Sequence[str], processes: int) -> Iterator[_Run]:
    """Give a function that checks files, on this process or on several."""
    processes = min(processes, os.cpu_count() or 1)
    if processes < 2:
        project = Project(list(files))
        yield lambda files, names: (_checked(project, file, names) for file in files)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _prepare, (list(files),)) as pool:
        yield lambda files, names: pool.imap_unordered(partial(_in_worker, names=names), files, chunksize=4)


_project = Project([])


def _prepare(files: list[str]) -> None:
    global _project
    _project = Project(files)


def _in_worker(file: str, names: tuple[str, ...]) -> _FileResult:
    return _checked(_project, file, names)


def _counted(results: Iterator[_FileResult], count: int, progress: Progress | None) -> Iterator[_FileResult]:
    for i, one in enumerate(results, 1):
        if progress is not None:
            progress(i, count)
        yield one


def _checked(project: Project, file: str, names: tuple[str, ...]) -> _FileResult:
    """Check one file; what cannot be read is a finding."""
    try:
        text = read_text(file)
    except UnreadableError as error:
        return _FileResult(file, unread=(Finding("PD001", file, error.reason, error.line, 1, file),))
    unread = [Finding("PD001", file, f"cell {cell}: {reason}", 1, 1, file, cell) for cell, reason in text.broken]
    try:
        source = project.source(file) or Source(file, text.code, project)
    except SyntaxError as error:
        unread.append(Finding("PD001", file, error.msg, error.lineno or 1, error.offset or 1, file))
        return _FileResult(file, unread=tuple(unread))
    project.add(source)
    unread += _old_names(source)
    words = set(re.findall(r"\w+", text.code)) if names else set()
    try:
        checked = check_file(source, words.intersection(names))
    except RecursionError:
        unread.append(Finding("PD001", file, "nested too deeply to be followed", 1, 1, file))
        checked = Checked()
    return _FileResult(file, checked, tuple(unread))


def _old_names(source: Source) -> list[Finding]:
    """Return a finding if the file was only read by giving `async` or `await` another name."""
    if not source.old_names:
        return []
    detail = "`async` and `await` are keywords since Python 3.7; the file was checked with other names for them"
    return [Finding("PD001", source.file, detail, source.old_names, 1, source.file)]


def _by_file(found: Iterable[Finding]) -> Iterator[tuple[Text | None, Iterable[Finding]]]:
    """Yield findings, sorted by file, with the text of each file; None if it cannot be read any more."""
    for file, group in itertools.groupby(found, key=lambda one: one.file):
        text: Text | None
        try:
            text = read_text(file)
        except UnreadableError:
            text = None
        yield text, group


def _placed(finding: Finding, text: Text | None) -> Finding:
    """Return a finding with its source line; in a notebook, with cell and line."""
    if text is None:
        return finding
    finding = _with_text(finding, text.code.split("\n"))
    if text.cells is None or finding.line > len(text.cells):  # longer only if the notebook changed meanwhile
        return finding
    cell, line = text.cells[finding.line - 1]
    return replace(finding, line=line, cell=cell)


def _with_text(finding: Finding, lines: Sequence[str]) -> Finding:
    return replace(finding, text="".join(lines[finding.line - 1 : finding.line]).strip())
