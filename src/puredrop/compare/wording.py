"""The sentences about a run, the same on the page and in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["QUANTITIES", "Quantity", "verdict"]


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


def _arms(key: str, title: str, scale: float, digits: int, unit: str, better: str, worse: str) -> Quantity:
    return Quantity(key, title, ("none", key), ("dropout", key), scale, digits, unit, better, worse)


def _members(key: str, title: str, scale: float, digits: int, unit: str) -> Quantity:
    paths = ("dropout", key), ("dropout", "mc", key)
    return Quantity(f"mc_{key}", title, *paths, scale, digits, unit, "50 members are better", "one pass is better")


QUANTITIES = {
    q.key: q
    for q in (
        _arms("nll", "NLL on test rows", 1, 4, "", "dropout is better", "dropout is worse"),
        _arms("error", "error on test rows", 100, 2, " %", "dropout is better", "dropout is worse"),
        _arms("gap", "gap, test minus training NLL", 1, 4, "", "dropout narrows it", "dropout widens it"),
        _members("nll", "NLL, 50 members against one pass", 1, 4, ""),
        _members("error", "error, 50 members against one pass", 100, 2, " %"),
    )
}


def verdict(results: dict[str, Any]) -> str:
    """The run in one sentence.

    Args:
        results: as in results.json.

    Returns:
        A sentence that claims no more than the intervals allow.
    """
    name, seeds = results["identity"]["data"], results["identity"]["seeds"]
    found = {key: results["differences"][key]["found"] for key in ("nll", "error")}
    parts = []
    for key, label in (("nll", "the test NLL"), ("error", "the test error")):
        q = QUANTITIES[key]
        before, after = q.means(results)
        if found[key]:
            verb = "lowered" if results["differences"][key]["estimate"] < 0 else "raised"
            parts.append(f"{verb} {label} from {before} to {after}")
        else:
            detectable = q.show(results["differences"][key]["detectable"]) + (" points" if q.unit else "")
            parts.append(
                f"made no difference we could find to {label} ({before} and {after}; it could have shown {detectable})"
            )
    joint = "and" if found["nll"] == found["error"] else "but"
    return f"On {name}, over {seeds} seeds, dropout {parts[0]}, {joint} {parts[1]}."
