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

    >>> Finding("PD302", "encoder.drop").severity
    'error'
    """

    code: str
    place: str
    detail: str = ""
    line: int = 0
    column: int = 0
    file: str = ""

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
        at = f"{self.file}:{self.line}:{self.column}" if self.file else self.place or "(model)"
        return f"{at}: {self.severity} {self.code}: {self.message}\n    why: {code.why}\n    fix: {code.fix}"


@dataclass(frozen=True, repr=False)
class Report(Records):
    """Findings of a check: iterable, printable, and readable by other programs.

    Args:
        findings: in the order of their places.
        checked: number of sites, or files, that were checked.

    >>> report = Report((Finding("PD302", "drop"),), checked=3)
    >>> report.ok, len(report), [finding.code for finding in report]
    (False, 1, ['PD302'])
    """

    findings: tuple[Finding, ...]
    checked: int = 0

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return whether the check passed, how much was checked, and the findings."""
        return {"ok": self.ok, "checked": self.checked, "findings": self.records()}

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
            return f"no findings ({self.checked} checked)"
        count = len(self.findings)
        return "\n".join([*map(str, self.findings), f"{count} finding{'s' * (count > 1)}"])
