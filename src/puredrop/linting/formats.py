"""Formats of reports for other programs: JSON, SARIF (code scanning) and GitHub's annotations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from puredrop.linting._codes import CODES
from puredrop.linting._findings import Finding, Report
from puredrop.linting.baseline import relative

__all__ = ["FORMATS"]

_LEVELS = {"error": "error", "warning": "warning", "note": "note", "unknown": "note"}
_COMMANDS = {"error": "error", "warning": "warning", "note": "notice", "unknown": "notice"}


def _sarif(report: Report, fingerprints: Sequence[str]) -> str:
    """Return a report as SARIF 2.1.0, the format of OASIS for code scanning."""
    rules = [
        {
            "id": name,
            "shortDescription": {"text": code.title},
            "fullDescription": {"text": code.why},
            "help": {"text": code.fix},
            "defaultConfiguration": {"level": _LEVELS[code.severity]},
            "properties": {"severity": code.severity},
        }
        for name, code in CODES.items()
    ]
    driver = {"name": "puredrop", "version": version("puredrop"), "rules": rules}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not report.problems,
                "toolExecutionNotifications": [{"level": "error", "message": {"text": one}} for one in report.problems],
            }
        ],
        "results": [_result(*one) for one in zip(report, fingerprints, strict=True)],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1)


def _result(finding: Finding, fingerprint: str) -> dict[str, Any]:
    return {
        "ruleId": finding.code,
        "ruleIndex": list(CODES).index(finding.code),
        "level": _LEVELS[finding.severity],
        "message": {"text": finding.message},
        "locations": [_location(finding)],
        "partialFingerprints": {"puredrop/v1": fingerprint},
        "properties": {"severity": finding.severity},
    }


def _location(finding: Finding) -> dict[str, Any]:
    if not finding.file:
        return {"logicalLocations": [{"fullyQualifiedName": finding.place or "model"}]}
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(finding.file)}}
    if finding.line:
        place["region"] = {"startLine": finding.line, "startColumn": max(1, finding.column)}
    if not finding.cell:
        return {"physicalLocation": place}
    return {"physicalLocation": place, "logicalLocations": [{"name": f"cell {finding.cell}"}]}


def _uri(file: str) -> str:
    """Return a file as a URI, from the current folder where it lies below."""
    path = relative(file, Path())
    if path.startswith("../") or Path(path).is_absolute():
        path = Path(file).absolute().as_posix()
        return "file://" + quote(os.fsencode(path if path.startswith("/") else f"/{path}"))
    return quote(os.fsencode(path))


def _github(report: Report, fingerprints: Sequence[str]) -> str:
    """Return a report as workflow commands, which GitHub shows at the lines."""
    return "\n".join(map(_command, report))


def _command(finding: Finding) -> str:
    properties = {"title": f"puredrop {finding.code}"}
    text = f"{finding.message} - {CODES[finding.code].fix}"
    if not finding.file:
        text += f" ({finding.place or 'model'})"
    elif finding.cell:  # a line of a notebook's file is not one of its cells
        text = f"cell {finding.cell}, line {finding.line}: {text}"
        properties = {"file": _path(finding.file), "line": "1", **properties}
    else:
        line, column = max(1, finding.line), max(1, finding.column)
        properties = {"file": _path(finding.file), "line": str(line), "col": str(column), **properties}
    given = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{_COMMANDS[finding.severity]} {given}::{_data(text)}"


def _path(file: str) -> str:
    """Return a file from the current folder where it lies below, which GitHub needs."""
    path = relative(file, Path())
    return Path(file).as_posix() if path.startswith("../") else path


def _data(text: str) -> str:
    """Return a text with the escapes of workflow commands."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Return the value of a property with the escapes of workflow commands."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[Report, Sequence[str]], str]] = {
    "text": lambda report, fingerprints: str(report),
    "json": lambda report, fingerprints: report.to_json(indent=1),
    "sarif": _sarif,
    "github": _github,
}
"""Functions of a report and its findings' fingerprints, by name."""
