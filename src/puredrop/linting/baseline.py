"""Baselines: files of findings that are known, so that a check reports only what is new."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puredrop._files import BLANK_CHECKSUM, check_format, read_json, seal, write
from puredrop.linting._findings import Finding

__all__ = ["Baseline", "fingerprints", "read_baseline", "relative", "write_baseline"]

_FORMAT = 1
_FIX = "write it again with --write-baseline"


@dataclass(frozen=True)
class _Entry:
    """Findings that look the same: of one code, in one file, on lines of the same text.

    Args:
        target: the file, relative to the folder of the baseline; of a model, its module:factory.
        code: the code.
        text: the source line; the place in the model.
    """

    target: str
    code: str
    text: str

    @property
    def fingerprint(self) -> str:
        """Hash that stays the same where lines move."""
        text = "\0".join((self.target, self.code, self.text)).encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Baseline:
    """Known findings.

    Args:
        folder: folder of the file, which the files of findings are relative to.
        counts: number of known findings, by fingerprint.
        targets: file or model, and code, by fingerprint.
    """

    folder: Path
    counts: dict[str, int]
    targets: dict[str, tuple[str, str]]

    def knows(self, fingerprint: str) -> bool:
        """Return whether a finding is known, by its fingerprint and its number among those that look the same."""
        name, _, number = fingerprint.partition(":")
        return int(number) <= self.counts.get(name, 0)

    def fixed(self, present: Iterable[str], is_checked: Callable[[str, str], bool]) -> int:
        """Return the number of known findings that are no more.

        Args:
            present: fingerprints of the present findings.
            is_checked: function of a file or model and a code that returns whether both were checked.
        """
        now = Counter(one.partition(":")[0] for one in present)
        return sum(max(0, count - now[name]) for name, count in self.counts.items() if is_checked(*self.targets[name]))


def fingerprints(findings: Sequence[Finding], folder: Path, model: str = "") -> list[str]:
    """Return for each finding a text that stays the same where lines move: a hash and a number, from 1 on.

    Args:
        findings: all findings of a check.
        folder: folder that files are relative to.
        model: module:factory of the model that was checked.
    """
    counts: Counter[str] = Counter()
    texts = []
    for finding in findings:
        name = _entry(finding, folder, model).fingerprint
        counts[name] += 1
        texts.append(f"{name}:{counts[name]}")
    return texts


def write_baseline(path: Path, findings: Sequence[Finding], model: str = "") -> None:
    """Write all findings of a check as known ones; arguments as `fingerprints`.

    Raises:
        OSError: if the file cannot be written.
    """
    counts = Counter(_entry(finding, path.parent, model) for finding in findings)
    entries = [
        {
            "fingerprint": entry.fingerprint,
            "count": counts[entry],
            "target": entry.target,
            "code": entry.code,
            "text": entry.text,
        }
        for entry in sorted(counts, key=lambda one: (one.target, one.code, one.text))
    ]
    record = {"checksum": BLANK_CHECKSUM, "format": _FORMAT, "findings": entries}
    # With a line break at the end, which hooks add to committed files, and which the checksum counts.
    write(path, seal(json.dumps(record, indent=1).encode() + b"\n"))


def read_baseline(path: Path) -> Baseline:
    """Return the known findings that a file holds.

    Raises:
        ValueError: if there is no such file, or it is no baseline; the message names it.
    """
    try:
        record = read_json(path, _FIX)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; a baseline is written with --write-baseline") from error
    check_format(path, record.get("format"), _FORMAT, _FIX)
    try:
        entries = [_checked(entry) for entry in record["findings"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no baseline of puredrop check; {_FIX}") from error
    return Baseline(
        path.parent,
        {entry["fingerprint"]: entry["count"] for entry in entries},
        {entry["fingerprint"]: (entry["target"], entry["code"]) for entry in entries},
    )


def relative(file: str, folder: Path) -> str:
    """Return a file as a path from a folder, with slashes; unchanged if there is none."""
    path = Path(file)
    whole = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(whole, folder.resolve())).as_posix()
    except ValueError:  # on another volume
        return whole.as_posix()


def _entry(finding: Finding, folder: Path, model: str) -> _Entry:
    if not finding.file:
        return _Entry(model, finding.code, finding.place)
    # A file that cannot be read has a reason and no line of text; the reason may name a line.
    text = finding.text or re.sub(r"\d+", "#", finding.detail)
    return _Entry(relative(finding.file, folder), finding.code, text)


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a file; raise TypeError or KeyError if it is none."""
    kinds = {"fingerprint": str, "count": int, "target": str, "code": str}
    if not all(isinstance(entry[name], kind) for name, kind in kinds.items()):
        raise TypeError("not an entry")
    return entry
