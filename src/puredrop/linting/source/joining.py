"""The findings of a tree: outcomes of all contexts and files, joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from puredrop.linting._findings import Finding
from puredrop.linting.source.file import Checked
from puredrop.linting.source.verdicts import Outcome, Position

__all__ = ["findings", "places"]


def places(checked: Iterable[Checked]) -> int:
    """Return the number of places that drop."""
    return len({outcome.place for one in checked for outcome in one.outcomes})


def findings(checked: Iterable[Checked]) -> list[Finding]:
    """Return the findings of files that were checked together, by file and line."""
    every = list(checked)
    by_place: defaultdict[Position, list[Outcome]] = defaultdict(list)
    folders = {_folder(outcome) for one in every for outcome in one.outcomes if outcome.code != "PD406"}
    for one in every:
        for outcome in one.outcomes:
            if outcome.code == "PD406" and _folder(outcome) not in folders:
                continue  # nothing near it drops, so that a recomputation repeats itself
            by_place[outcome.place].append(outcome)
    found: dict[tuple[Position, str], Finding] = {}
    for outcomes in by_place.values():
        for outcome in _decided(outcomes):
            place = outcome.blame or outcome.place
            key = place, outcome.code
            if not outcome.is_ignored and key not in found:
                found[key] = Finding(outcome.code, place.file, outcome.detail, place.line, place.column, place.file)
    certain = {place for (place, code) in found if code != "PD002"}
    rest = [one for (place, code), one in found.items() if code != "PD002" or place not in certain]
    return sorted(rest, key=lambda one: (one.file, one.line, one.column, one.code))


def _decided(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes of one place that are findings."""
    wrong = [one for one in outcomes if one.verdict == "on"]
    soft = [one for one in wrong if one.is_soft]
    if soft and not any(one.is_switched for one in outcomes):
        wrong = [one for one in wrong if not one.is_soft]
        wrong.append(replace(soft[0], blame=soft[0].place, detail=soft[0].detail.partition(" in ")[0]))
    undecided = [one for one in outcomes if one.verdict == "unknown"]
    deepest = max(one.depth for one in outcomes)
    undecided += [one for one in outcomes if one.verdict == "open" and one.depth == deepest]
    return [*wrong, *undecided]


def _folder(outcome: Outcome) -> str:
    return str(Path(outcome.place.file).parent)
