"""Reports for machines: JSON, SARIF (code scanning), and GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from puredrop.linting._findings import CODES, Finding, Report

__all__ = ["FORMATS"]


def _json(report: Report) -> str:
    rows = [
        {
            **asdict(one),
            "severity": one.severity,
            "message": one.message,
            "why": CODES[one.code].why,
            "fix": CODES[one.code].fix,
        }
        for one in report
    ]
    return json.dumps({"ok": report.ok, "looked_at": report.looked_at, "findings": rows}, indent=1)


def _sarif(report: Report) -> str:
    """SARIF 2.1.0, as OASIS defines it."""
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
    run = {"tool": {"driver": driver}, "results": [_result(one) for one in report]}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1)


def _result(one: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {"ruleId": one.code, "level": one.severity, "message": {"text": one.message}}
    if one.file:
        region = {"startLine": one.line, "startColumn": one.column}
        place = {"artifactLocation": {"uri": Path(one.file).as_posix()}, "region": region}
        result["locations"] = [{"physicalLocation": place}]
    else:
        result["locations"] = [{"logicalLocations": [{"fullyQualifiedName": one.place or "model"}]}]
    return result


def _github(report: Report) -> str:
    """Workflow commands, which GitHub shows beside the lines."""
    kinds = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for one in report:
        at = f" file={one.file},line={one.line},col={one.column}," if one.file else " "
        text = f"{one.message} - {CODES[one.code].fix}" + ("" if one.file else f" ({one.place or 'model'})")
        lines.append(f"::{kinds[one.severity]}{at}title=puredrop {one.code}::{text}")
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Report], str]] = {"text": str, "json": _json, "sarif": _sarif, "github": _github}
