"""Findings and the report of a check."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records
from puredrop._text import counted, printable
from puredrop.linting._codes import CODES

__all__ = ["Finding", "Report"]

_WIDTH = 80
"""Columns of a terminal."""


@dataclass(frozen=True)
class Finding:
    """One mistake at one place.

    Args:
        code: key of the mistake in `CODES`, such as "PD101".
        place: path of the site in the model, or name of the file.
        detail: facts about this place, such as the rate; "" where there are none.
        line, column: position in the file, counted from 1; 0 for a finding in a model.
        file: name of the file, "" for a finding in a model.
        cell: cell of a notebook, counted from 1 with those of text; the line is then one of the cell's. 0 elsewhere.
        text: the source line.

    >>> Finding("PD302", "encoder.drop").severity
    'error'
    """

    code: str
    place: str
    detail: str = ""
    line: int = 0
    column: int = 0
    file: str = ""
    cell: int = 0
    text: str = ""

    @property
    def severity(self) -> str:
        """Severity of the finding's code: "error", "warning", "note" or "unknown"."""
        return CODES[self.code].severity

    @property
    def message(self) -> str:
        """The code's title and the detail, in one line."""
        return CODES[self.code].title + (f": {self.detail}" if self.detail else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the finding, with severity, message, reason and fix."""
        code = CODES[self.code]
        return {**asdict(self), "severity": code.severity, "message": self.message, "why": code.why, "fix": code.fix}

    @property
    def summary(self) -> str:
        """The place, the mistake and the source line, without reason and fix: two lines at most."""
        cell = f"cell {self.cell}:" if self.cell else ""
        at = f"{printable(self.file)}:{cell}{self.line}:{self.column}" if self.file else self.place or "(model)"
        is_long = len(self.text) > _WIDTH - 4
        text = "\n    " + (self.text[: _WIDTH - 7] + "..." if is_long else self.text) if self.text else ""
        return f"{at}: {self.severity} {self.code}: {self.message}{text}"

    def __str__(self) -> str:
        code = CODES[self.code]
        return f"{self.summary}\n    why: {code.why}\n    fix: {code.fix}"


@dataclass(frozen=True, repr=False)
class Report(Records):
    """Findings of a check: iterable, printable, and readable by other programs.

    Args:
        findings: in the order of their places.
        checked: number of sites of a model, or of calls in source that drop.
        files: number of files that were read; None for a model.
        problems: of the command, one line for each path that could not be checked.

    >>> report = Report((Finding("PD302", "drop"),), checked=3)
    >>> report.ok, len(report), [finding.code for finding in report]
    (False, 1, ['PD302'])
    >>> print(report)
    drop: error PD302: the rate is 1
    <BLANKLINE>
    PD302: the rate is 1
        why: everything is dropped
        fix: p is the share that is dropped, not what is kept
    <BLANKLINE>
    1 finding (3 sites checked)
    """

    findings: tuple[Finding, ...]
    checked: int = 0
    files: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if there are no findings, everything could be checked, and a model has dropout at all."""
        return not self.findings and not self.problems and (self.checked > 0 or self.files is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return whether the check passed, how much was checked, what was not, and the findings."""
        extent = {"checked": self.checked, "files": self.files, "problems": list(self.problems)}
        return {"ok": self.ok, **extent, "findings": self.records()}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the fields of each finding, with severity, message, reason and fix."""
        rows = [finding.to_dict() for finding in self.findings]
        names = [*(field.name for field in fields(Finding)), "severity", "message", "why", "fix"]
        return {name: [row[name] for row in rows] for name in names}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return f"no findings ({self._extent()})" if self.checked else self._nothing()
        unknown = sum(finding.severity == "unknown" for finding in self.findings)
        known = len(self.findings) - unknown
        counts = [counted(known, "finding")] if known else ["no mistake found"]
        counts += [f"{unknown} not decided"] if unknown else []
        codes = sorted({finding.code for finding in self.findings})
        lines = [finding.summary for finding in self.findings]
        return "\n".join([*lines, "", *map(_explained, codes), "", f"{', '.join(counts)} ({self._extent()})"])

    def _nothing(self) -> str:
        """Return in words that nothing was checked."""
        if self.files is None:
            return "nothing to check: the model has no dropout"
        return f"nothing that drops in {counted(self.files, 'file')}"

    def _extent(self) -> str:
        """Return how much was checked, in words."""
        if self.files is None:
            return f"{counted(self.checked, 'site')} checked"
        drop = "drops" if self.checked == 1 else "drop"
        return f"{counted(self.checked, 'call')} that {drop}, in {counted(self.files, 'file')}"


def _explained(name: str) -> str:
    """Return a code's title, reason and fix, in lines of a terminal's width."""
    code = CODES[name]
    lines = [f"{name}: {code.title}"]
    for word, text in (("why", code.why), ("fix", code.fix)):
        lines += textwrap.wrap(
            f"{word}: {text}", _WIDTH, initial_indent="    ", subsequent_indent=" " * 9, break_on_hyphens=False
        )
    return "\n".join(lines)
