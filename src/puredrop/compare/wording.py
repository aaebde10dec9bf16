"""The sentences about a run, the same on the page and in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from puredrop.compare.measure import MEMBERS
from puredrop.compare.results import ENOUGH

__all__ = ["ARM_NAMES", "Quantity", "enough", "quantities", "verdict"]

ARM_NAMES = {
    "none": "without dropout",
    "dropout": "with dropout",
    "batchwise": "batchwise",
    "networks": "five networks",
}


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
    arms, members = ("dropout is better", "dropout is worse"), (f"{MEMBERS} members are better", "one pass is better")
    against = f"{MEMBERS} members against one pass"
    found = [
        Quantity("nll", "NLL on test rows", *_between_arms("nll"), 1.0, 4, "", *arms),
        Quantity("error", f"{label} on test rows", *_between_arms("error"), scale, digits, unit, *arms),
        Quantity(
            "gap",
            "gap, test minus training NLL",
            *_between_arms("gap"),
            1.0,
            4,
            "",
            "dropout narrows it",
            "dropout widens it",
        ),
        Quantity("mc_nll", f"NLL, {against}", *_of_members("nll"), 1.0, 4, "", *members),
        Quantity("mc_error", f"{label}, {against}", *_of_members("error"), scale, digits, unit, *members),
    ]
    if "mc_area" in results["differences"]:
        places = _of_members("rejection", "area")
        found.append(
            Quantity("mc_area", f"{label} over shares kept, {against}", *places, scale, digits + 1, unit, *members)
        )
    if "batchwise" in results["arms"]:
        groups = results["identity"]["groups"]
        against = f"masks shared by {groups} groups of a batch against a mask for each row"
        verbs = ("shared masks are better", "shared masks are worse")
        found += [
            Quantity("batchwise_nll", f"NLL, {against}", *_of_groups("nll"), 1.0, 4, "", *verbs),
            Quantity("batchwise_error", f"{label}, {against}", *_of_groups("error"), scale, digits, unit, *verbs),
        ]
    if "networks" in results["arms"]:
        against = f"five networks without dropout against {MEMBERS} members"
        verbs = ("five networks are better", f"{MEMBERS} members are better")
        found += [
            Quantity("networks_nll", f"NLL, {against}", *_of_networks("nll"), 1.0, 4, "", *verbs),
            Quantity("networks_error", f"{label}, {against}", *_of_networks("error"), scale, digits, unit, *verbs),
        ]
        places = _of_networks("rejection", "area")
        found.append(
            Quantity("networks_area", f"{label} over shares kept, {against}", *places, scale, digits + 1, unit, *verbs)
        )
    return {q.key: q for q in found}


def _between_arms(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("none", key), ("dropout", key)


def _of_groups(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("dropout", key), ("batchwise", key)


def _of_members(*keys: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("dropout", *keys), ("dropout", "mc", *keys)


def _of_networks(*keys: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("dropout", "mc", *keys), ("networks", *keys)


def enough(results: dict[str, Any]) -> str:
    """How many members are enough, in one sentence.

    Args:
        results: as in results.json.
    """
    least = results["samples"]["enough"]
    if least is None:
        return f"Fewer than {MEMBERS} members were not shown to come within {ENOUGH} nats of the NLL of {MEMBERS}."
    return f"From {least} members on the NLL is within {ENOUGH} nats of that of {MEMBERS}."


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
