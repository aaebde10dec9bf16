"""Findings and the report of a check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records
from puredrop.linting._codes import CODES

__all__ = ["Finding", "Report"]


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

    def __str__(self) -> str:
        code = CODES[self.code]
        cell = f"cell {self.cell}:" if self.cell else ""
        at = f"{self.file}:{cell}{self.line}:{self.column}" if self.file else self.place or "(model)"
        text = f"\n    {self.text}" if self.text else ""
        return f"{at}: {self.severity} {self.code}: {self.message}{text}\n    why: {code.why}\n    fix: {code.fix}"


@dataclass(frozen=True, repr=False)
class Report(Records):
    """Findings of a check: iterable, printable, and readable by other programs.

    Args:
        findings: in the order of their places.
        checked: number of sites of a model, or of calls in source that drop.
        files: number of files that were read; None for a model.

    >>> report = Report((Finding("PD302", "drop"),), checked=3)
    >>> report.ok, len(report), [finding.code for finding in report]
    (False, 1, ['PD302'])
    """

    findings: tuple[Finding, ...]
    checked: int = 0
    files: int | None = None

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return whether the check passed, how much was checked, and the findings."""
        return {"ok": self.ok, "checked": self.checked, "files": self.files, "findings": self.records()}

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
        if self.ok:
            return f"no findings ({self._extent()})"
        unknown = sum(finding.severity == "unknown" for finding in self.findings)
        known = len(self.findings) - unknown
        counts = [f"{known} finding{'s' * (known != 1)}"] if known else ["no mistake found"]
        counts += [f"{unknown} not decided"] if unknown else []
        return "\n".join([*map(str, self.findings), f"{', '.join(counts)} ({self._extent()})"])

    def _extent(self) -> str:
        """Return how much was checked, in words."""
        if self.files is None:
            return f"{self.checked} site{'s' * (self.checked != 1)} checked"
        calls = f"{self.checked} call{'s' * (self.checked != 1)} that drop{'s' * (self.checked == 1)}"
        return f"{calls}, in {self.files} file{'s' * (self.files != 1)}"
