"""The sentences about a run, the same on the page and in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from puredrop.compare.measure import MEMBERS
from puredrop.compare.results import ENOUGH
from puredrop.report.section import Claim

__all__ = ["ARM_NAMES", "Quantity", "enough", "findings", "quantities", "verdict"]

ARM_NAMES = {
    "none": "without dropout",
    "dropout": "with dropout",
    "batchwise": "batchwise",
    "networks": "five networks",
    "sweep": "sweep of rates",
}


_Path = tuple[str, ...]


@dataclass(frozen=True)
class Quantity:
    """One difference that a run measures.

    Args:
        key: its name in results.json.
        title: what is compared.
        before, after: where the two values stand in an arm's record, as (arm, path).
        scale: what to multiply values by for display.
        digits: decimals shown.
        unit: for display, after a value.
        better, worse: verbs for a negative and a positive difference that was found.
    """

    key: str
    title: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    scale: float
    digits: int
    unit: str
    better: str
    worse: str

    def value(self, results: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        """The record with mean and per_seed at a path."""
        record: dict[str, Any] = results["arms"]
        for step in path:
            record = record[step]
        return record

    def show(self, number: float, *, signed: bool = False) -> str:
        """A number in this quantity's unit, without the unit."""
        text = f"{number * self.scale:{'+' if signed else ''}.{self.digits}f}"
        return text.replace("-", "−")

    def means(self, results: dict[str, Any]) -> tuple[str, str]:
        """Both means, with their unit."""
        before, after = (self.show(self.value(results, path)["mean"]) for path in (self.before, self.after))
        return before + self.unit, after + self.unit

    def interval(self, results: dict[str, Any]) -> str:
        """The difference and its 95 % interval."""
        d = results["differences"][self.key]
        low, high = (self.show(d[end], signed=True) for end in ("low", "high"))
        return f"{self.show(d['estimate'], signed=True)} [{low}, {high}]"

    def claim(self, results: dict[str, Any], *, short: bool = False) -> str:
        """What may be said: a difference only where its interval excludes 0."""
        d = results["differences"][self.key]
        if d["found"]:
            return self.better if d["estimate"] < 0 else self.worse
        least = self.show(d["detectable"])
        return (
            f"none; could detect ≥ {least}" if short else f"no difference found; this run could have detected ≥ {least}"
        )


def quantities(results: dict[str, Any]) -> dict[str, Quantity]:
    """What this run measures, in the units of its task.

    Args:
        results: as in results.json.

    Returns:
        By the key of the difference.
    """
    if results["identity"]["task"] == "classification":
        error = ("error", 100.0, 2, " %")
    else:
        size = results["arms"]["none"]["error"]["mean"]
        error = ("RMSE", 1.0, max(0, 3 - math.floor(math.log10(size or 1.0))), "")
    label, scale, digits, unit = error

    def three(way: str, against: str, better: str, worse: str, before: _Path, after: _Path) -> list[Quantity]:
        """NLL, error and, where it was measured, the area under the curve of rejection: one way against another."""
        wanted = [
            ("nll", "NLL", ("nll",), 1.0, 4, ""),
            ("error", label, ("error",), scale, digits, unit),
            ("area", f"{label} over shares kept", ("rejection", "area"), scale, digits + 1, unit),
        ]
        return [
            Quantity(
                f"{way}_{key}", f"{title}, {against}", before + at, after + at, factor, places, ends, better, worse
            )
            for key, title, at, factor, places, ends in wanted
            if f"{way}_{key}" in results["differences"]
        ]

    arms, none, dropout, mc = ("dropout is better", "dropout is worse"), ("none",), ("dropout",), ("dropout", "mc")
    of_gap = ("dropout narrows it", "dropout widens it")
    gap = "gap, test minus training NLL"
    found = [
        Quantity("nll", "NLL on test rows", (*none, "nll"), (*dropout, "nll"), 1.0, 4, "", *arms),
        Quantity("error", f"{label} on test rows", (*none, "error"), (*dropout, "error"), scale, digits, unit, *arms),
        Quantity("gap", gap, (*none, "gap"), (*dropout, "gap"), 1.0, 4, "", *of_gap),
    ]
    members = f"{MEMBERS} members are better"
    found += three("mc", f"{MEMBERS} members against one pass", members, "one pass is better", dropout, mc)
    against = f"masks shared by {results['identity']['groups']} groups of a batch against a mask for each row"
    verbs = ("shared masks are better", "shared masks are worse")
    found += three("batchwise", against, *verbs, dropout, ("batchwise",))
    against = f"five networks without dropout against {MEMBERS} members"
    found += three("networks", against, "five networks are better", members, mc, ("networks",))
    return {q.key: q for q in found}


def enough(results: dict[str, Any]) -> str:
    """How many members are enough, in one sentence.

    Args:
        results: as in results.json.
    """
    least = results["samples"]["enough"]
    if least is None:
        return f"Fewer than {MEMBERS} members were not shown to come within {ENOUGH} nats of the NLL of {MEMBERS}."
    return f"From {least} members on the NLL is within {ENOUGH} nats of that of {MEMBERS}."


def findings(results: dict[str, Any]) -> list[Claim]:
    """What held of the sentences that explain dropout, and what did not: of one network, and of members over seeds.

    Args:
        results: as in results.json.
    """
    found = [Claim(**one) for one in results["account"]["findings"]]
    q, d = quantities(results)["mc_nll"], results["differences"]["mc_nll"]
    says = f"the mean of {MEMBERS} sub-networks changes the test NLL by {q.interval(results)}"
    means = Claim("one-pass", not d["found"], f"“one pass averages 2^n networks”: {says}; {q.claim(results)}")
    at = next((i for i, one in enumerate(found) if one.id == "l2"), len(found))
    return [*found[:at], means, *found[at:]]


def verdict(results: dict[str, Any]) -> str:
    """The run in one sentence.

    Args:
        results: as in results.json.

    Returns:
        A sentence that claims no more than the intervals allow.
    """
    name, seeds = results["name"], results["identity"]["seeds"]
    measured = quantities(results)
    error = "the test error" if results["identity"]["task"] == "classification" else "the test RMSE"
    found = {key: results["differences"][key]["found"] for key in ("nll", "error")}
    parts = []
    for key, label in (("nll", "the test NLL"), ("error", error)):
        q = measured[key]
        before, after = q.means(results)
        if found[key]:
            verb = "lowered" if results["differences"][key]["estimate"] < 0 else "raised"
            parts.append(f"{verb} {label} from {before} to {after}")
        else:
            detectable = q.show(results["differences"][key]["detectable"]) + (" points" if q.unit else "")
            could = f"{label} ({before} and {after}; it could have shown {detectable})"
            parts.append(
                f"to {could}" if parts and not found["nll"] else f"made no difference we could find to {could}"
            )
    joint = "and" if all(found.values()) else "but" if any(found.values()) else "nor"
    return f"On {name}, over {seeds} seeds, dropout {parts[0]}, {joint} {parts[1]}."
