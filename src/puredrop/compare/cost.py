"""What each arm cost: seconds of training until it reaches what the arm without dropout reaches at best."""

from __future__ import annotations

import statistics
from typing import Any

from puredrop.compare.wording import ARM_NAMES, quantities
from puredrop.report.figures import Figure, axis, level, line
from puredrop.report.section import Section

__all__ = ["cost", "loss_axis", "trained"]


def trained(results: dict[str, Any]) -> dict[str, Any]:
    """The arms whose training is drawn: the five networks learn as the one without dropout does."""
    return {name: record for name, record in results["arms"].items() if name != "networks"}


def loss_axis() -> dict[str, Any]:
    """The axis of validation losses."""
    ticks = [base * 10**power for power in range(-4, 2) for base in (1, 1.5, 2, 3, 5, 7)]
    return {"title": {"text": "validation loss (log scale)"}, "type": "log", "zeroline": False, "tickvals": ticks}


def _mean(record: dict[str, Any]) -> list[float]:
    """Validation loss by epoch, over seeds."""
    return [statistics.fmean(epoch) for epoch in record["history"]["validation_loss"]]


def cost(results: dict[str, Any]) -> Section:
    """The part of the page.

    Args:
        results: as in results.json.
    """
    target = min(_mean(results["arms"]["none"]))
    times: dict[str, float | None] = {}
    for name, record in trained(results).items():
        epochs = [epoch for epoch, loss in enumerate(_mean(record), 1) if loss <= target]
        times[name] = epochs[0] * record["seconds_per_epoch"] if epochs else None
    said = [
        f"{ARM_NAMES[name]} {time:.1f} s" if time is not None else f"{ARM_NAMES[name]} never"
        for name, time in times.items()
    ]
    per_epoch = ", ".join(
        f"{ARM_NAMES[name]} {record['seconds_per_epoch']:.2f} s" for name, record in trained(results).items()
    )
    sentence = (
        f"To the lowest validation loss that the network reaches without dropout, {target:.4f}: {', '.join(said)}."
    )
    how = (
        f"Seconds of training of all {results['identity']['seeds']} seeds together, an epoch counted at the arm's "
        f"average ({per_epoch}); the loss is the mean over seeds. The arm without dropout chose the target. "
        "One run on one machine: these times have no interval."
    )
    dropout = times["dropout"]
    number = "never" if dropout is None else f"{dropout:.1f} s"
    return Section(
        "cost", "What did it cost?", sentence, number, "with dropout, to that loss", (_clock(results, target),), how
    )


def _clock(results: dict[str, Any], target: float) -> Figure:
    """Validation loss by seconds of training, the mean over seeds, to the last epoch; the arm's test error there."""
    traces, ends, most = [], [], 0.0
    error = quantities(results)["error"]
    for name, record in trained(results).items():
        mean = _mean(record)
        seconds = [record["seconds_per_epoch"] * epoch for epoch in range(1, len(mean) + 1)]
        most = max(most, seconds[-1])
        text = f"test {error.title.split()[0]} {error.show(record['error']['mean'])}{error.unit}"
        label = f"{ARM_NAMES[name]}, {text}"
        traces.append(line(seconds, mean, f"@{name}", "%{x:.1f} s: %{y:.4f}", width=2.5, name=label))
        ends.append(f"{ARM_NAMES[name]} {seconds[-1]:.0f} s, {text}")
    traces.append(level([0, most], target, "@line", "target", None, hoverinfo="skip"))
    xaxis = axis("seconds of training, all seeds", zeroline=False)
    alt = f"validation loss by seconds of training, target {target:.4f}; " + "; ".join(ends)
    legend = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "top"}
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": loss_axis(), "legend": legend})
