"""The findings of a tree: outcomes of all contexts and files, joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

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
    callees = frozenset().union(*(one.callees for one in every))
    by_place: defaultdict[Position, list[Outcome]] = defaultdict(list)
    drops = any(outcome.code != "PD406" for one in every for outcome in one.outcomes)
    for one in every:
        for outcome in one.outcomes:
            if outcome.code == "PD406" and not drops:
                continue  # nothing in this tree drops, so a recomputation repeats itself
            by_place[outcome.place].append(outcome)
    found: dict[tuple[Position, str], Finding] = {}
    for outcomes in by_place.values():
        for outcome in _decided(outcomes, callees):
            place = outcome.blame or outcome.place
            key = place, outcome.code
            if not outcome.is_ignored and key not in found:
                found[key] = Finding(outcome.code, place.file, outcome.detail, place.line, place.column, place.file)
    certain = {place for (place, code) in found if code != "PD002"}
    rest = [one for (place, code), one in found.items() if code != "PD002" or place not in certain]
    return sorted(rest, key=lambda one: (one.file, one.line, one.column, one.code))


def _decided(outcomes: list[Outcome], callees: frozenset[tuple[str, int]]) -> list[Outcome]:
    """Return the outcomes of one place that are findings."""
    wrong = [one for one in outcomes if one.verdict == "on"]
    soft = [one for one in wrong if one.is_soft]
    if soft and not any(one.verdict == "off" for one in outcomes):
        inner = soft[0]
        wrong = [one for one in wrong if not one.is_soft]
        wrong.append(
            Outcome(
                inner.place,
                "on",
                inner.code,
                inner.place,
                inner.detail.partition(" in ")[0],
                is_ignored=inner.is_ignored,
            )
        )
    undecided = [one for one in outcomes if one.verdict == "unknown"]
    undecided += [one for one in outcomes if one.verdict == "open" and one.function not in callees]
    return [*wrong, *undecided]
