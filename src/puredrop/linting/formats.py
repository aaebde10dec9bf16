"""Formats of reports for other programs: JSON, SARIF (code scanning) and GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from puredrop.linting._codes import CODES
from puredrop.linting._findings import Finding, Report

__all__ = ["FORMATS"]


def _sarif(report: Report) -> str:
    """Return a report as SARIF 2.1.0, the format of OASIS for code scanning."""
    rules = [
        {
            "id": name,
            "shortDescription": {"text": code.title},
            "fullDescription": {"text": code.why},
            "help": {"text": code.fix},
            "defaultConfiguration": {"level": code.severity},
        }
        for name, code in CODES.items()
    ]
    driver = {"name": "puredrop", "version": version("puredrop"), "rules": rules}
    run = {"tool": {"driver": driver}, "results": [_result(finding) for finding in report]}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1)


def _result(finding: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {"ruleId": finding.code, "level": finding.severity, "message": {"text": finding.message}}
    if finding.file:
        region = {"startLine": finding.line, "startColumn": finding.column}
        place = {"artifactLocation": {"uri": Path(finding.file).as_posix()}, "region": region}
        result["locations"] = [{"physicalLocation": place}]
    else:
        result["locations"] = [{"logicalLocations": [{"fullyQualifiedName": finding.place or "model"}]}]
    return result


def _github(report: Report) -> str:
    """Return a report as workflow commands, which GitHub shows at the lines."""
    kinds = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for finding in report:
        at = f" file={finding.file},line={finding.line},col={finding.column}," if finding.file else " "
        text = f"{finding.message} - {CODES[finding.code].fix}" + (
            "" if finding.file else f" ({finding.place or 'model'})"
        )
        lines.append(f"::{kinds[finding.severity]}{at}title=puredrop {finding.code}::{text}")
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": str,
    "json": lambda report: report.to_json(indent=1),
    "sarif": _sarif,
    "github": _github,
}
