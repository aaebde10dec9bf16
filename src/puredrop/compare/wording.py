"""Sentences about a run, the same on the page and in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from puredrop.compare.evaluation import MEMBERS
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
        title: name of the quantity, and what is compared with what.
        before, after: paths of the two values in the record of arms, the first step being the arm.
        scale: factor of values for display.
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
        """Return the record with mean and per_seed at a path."""
        record: dict[str, Any] = results["arms"]
        for step in path:
            record = record[step]
        return record

    def show(self, number: float, *, signed: bool = False) -> str:
        """Return a number in this quantity's unit, without the unit."""
        text = f"{number * self.scale:{'+' if signed else ''}.{self.digits}f}"
        return text.replace("-", "−")

    def means(self, results: dict[str, Any]) -> tuple[str, str]:
        """Return both means, with their unit."""
        before, after = (self.show(self.value(results, path)["mean"]) for path in (self.before, self.after))
        return before + self.unit, after + self.unit

    def interval(self, results: dict[str, Any]) -> str:
        """Return the difference and its 95 % interval."""
        d = results["differences"][self.key]
        low, high = (self.show(d[end], signed=True) for end in ("low", "high"))
        return f"{self.show(d['estimate'], signed=True)} [{low}, {high}]"

    def claim(self, results: dict[str, Any], *, short: bool = False) -> str:
        """Return the claim in words; a difference is claimed only where its interval excludes 0."""
        d = results["differences"][self.key]
        if d["found"]:
            return self.better if d["estimate"] < 0 else self.worse
        least = self.show(d["detectable"])
        return (
            f"none; could detect ≥ {least}" if short else f"no difference found; this run could have detected ≥ {least}"
        )


def quantities(results: dict[str, Any]) -> dict[str, Quantity]:
    """Return the differences that this run measures, in the units of its task.

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
        """Return NLL, error and, where measured, area under the risk-coverage curve: one way compared with another."""
        compared = [
            ("nll", "NLL", ("nll",), 1.0, 4, ""),
            ("error", label, ("error",), scale, digits, unit),
            ("area", f"{label} over shares kept", ("selective_prediction", "area"), scale, digits + 1, unit),
        ]
        return [
            Quantity(
                f"{way}_{key}", f"{title}, {against}", before + at, after + at, factor, places, ends, better, worse
            )
            for key, title, at, factor, places, ends in compared
            if f"{way}_{key}" in results["differences"]
        ]

    arms, none, dropout, mc = ("dropout is better", "dropout is worse"), ("none",), ("dropout",), ("dropout", "mc")
    of_gap = ("dropout narrows it", "dropout widens it")
    gap = "gap, test minus training NLL"
    measured = [
        Quantity("nll", "NLL on test rows", (*none, "nll"), (*dropout, "nll"), 1.0, 4, "", *arms),
        Quantity("error", f"{label} on test rows", (*none, "error"), (*dropout, "error"), scale, digits, unit, *arms),
        Quantity("gap", gap, (*none, "gap"), (*dropout, "gap"), 1.0, 4, "", *of_gap),
    ]
    members = f"{MEMBERS} members are better"
    measured += three("mc", f"{MEMBERS} members against one pass", members, "one pass is better", dropout, mc)
    against = f"masks shared by {results['identity']['groups']} groups of a batch against a mask for each row"
    verbs = ("shared masks are better", "shared masks are worse")
    measured += three("batchwise", against, *verbs, dropout, ("batchwise",))
    against = f"five networks without dropout against {MEMBERS} members"
    measured += three("networks", against, "five networks are better", members, mc, ("networks",))
    return {q.key: q for q in measured}


def enough(results: dict[str, Any]) -> str:
    """Return in one sentence how many members are enough.

    Args:
        results: as in results.json.
    """
    least = results["members_needed"]["enough"]
    if least is None:
        return f"Fewer than {MEMBERS} members were not shown to come within {ENOUGH} nats of the NLL of {MEMBERS}."
    return f"From {least} members on the NLL is within {ENOUGH} nats of that of {MEMBERS}."


def findings(results: dict[str, Any]) -> list[Claim]:
    """Return which of the usual explanations of dropout held, for one network and for members over seeds.

    Args:
        results: as in results.json.
    """
    claims = [Claim(**record) for record in results["explanation"]["findings"]]
    q, d = quantities(results)["mc_nll"], results["differences"]["mc_nll"]
    says = f"the mean of {MEMBERS} sub-networks changes the test NLL by {q.interval(results)}"
    means = Claim("one-pass", not d["found"], f"“one pass averages 2^n networks”: {says}; {q.claim(results)}")
    at = next((i for i, claim in enumerate(claims) if claim.id == "l2"), len(claims))
    return [*claims[:at], means, *claims[at:]]


def verdict(results: dict[str, Any]) -> str:
    """Return the run in one sentence.

    Args:
        results: as in results.json.

    Returns:
        A sentence that claims no more than the intervals allow.
    """
    name, seeds = results["name"], results["identity"]["seeds"]
    measured = quantities(results)
    error = "the test error" if results["identity"]["task"] == "classification" else "the test RMSE"
    is_found = {key: results["differences"][key]["found"] for key in ("nll", "error")}
    parts = []
    for key, label in (("nll", "the test NLL"), ("error", error)):
        q = measured[key]
        before, after = q.means(results)
        if is_found[key]:
            verb = "lowered" if results["differences"][key]["estimate"] < 0 else "raised"
            parts.append(f"{verb} {label} from {before} to {after}")
        else:
            detectable = q.show(results["differences"][key]["detectable"]) + (" points" if q.unit else "")
            could = f"{label} ({before} and {after}; it could have shown {detectable})"
            parts.append(
                f"to {could}" if parts and not is_found["nll"] else f"made no difference we could find to {could}"
            )
    joint = "and" if all(is_found.values()) else "but" if any(is_found.values()) else "nor"
    return f"On {name}, over {seeds} seeds, dropout {parts[0]}, {joint} {parts[1]}."
