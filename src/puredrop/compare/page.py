"""The page of a run: one self-contained HTML file made from the results alone."""

from __future__ import annotations

import shlex
import statistics
from typing import Any

from puredrop.compare.evaluation import MEMBERS
from puredrop.compare.sweep import section
from puredrop.compare.training import BATCH, LEARNING_RATE, PATIENCE
from puredrop.compare.wording import ARM_NAMES, Quantity, enough, findings, quantities, verdict
from puredrop.report.figures import Figure, Trace, axis, band, dots, interval_bars, level, line
from puredrop.report.page import render_template
from puredrop.report.section import Section

__all__ = ["render"]


_LEGEND = {"orientation": "h", "traceorder": "normal", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}


def render(results: dict[str, Any]) -> str:
    """Return the page.

    Args:
        results: as in results.json.

    Returns:
        HTML that needs no network.
    """
    return render_template(
        "report.html.j2",
        ("puredrop.compare",),
        results=results,
        verdict=verdict(results).replace(" %", "\N{NO-BREAK SPACE}%"),
        quantities=[_row(q, results) for q in quantities(results).values()],
        classification=results["identity"]["task"] == "classification",
        arms=[(name, ARM_NAMES[name]) for name in results["arms"]],
        table=_arms_table(results),
        figures=_figures(results),
        members=MEMBERS,
        enough=enough(results),
        excess=_excess(results),
        protocol={"learning_rate": LEARNING_RATE, "batch": BATCH, "patience": PATIENCE},
        command=_command(results["identity"]),
        findings=findings(results),
        sections=_sections(results),
    )


def _sections(results: dict[str, Any]) -> dict[str, Section]:
    """Return by id the sections on the first seed's network, the cost and the sweep."""
    sections = {record["id"]: Section.from_dict(record) for record in results["explanation"]["sections"]}
    sections["cost"] = _cost(results)
    if results["sweep"]:
        sections["rates"] = section(results["sweep"], results["identity"]["task"] == "classification")
    return sections


def _row(q: Quantity, results: dict[str, Any]) -> dict[str, Any]:
    d = results["differences"][q.key]
    reach = max(abs(d["low"]), abs(d["high"]), 1e-12) * 1.15
    before, after = q.means(results)
    return {
        "key": q.key,
        "title": q.title,
        "before": before,
        "after": after,
        "interval": q.interval(results),
        "unit": " points" if q.unit else "",
        "claim": q.claim(results),
        "found": d["found"],
        # Positions in a drawing 200 wide with 0 in the middle.
        "marks": {end: round(100 + 100 * d[end] / reach, 1) for end in ("low", "estimate", "high")},
    }


def _figures(results: dict[str, Any]) -> dict[str, Figure]:
    measured = quantities(results)
    paired = ("nll", "error", "gap", "mc_nll", "batchwise_error")
    pairs = {key: _pairs(q, results) for key, q in measured.items() if key in paired}
    drawn = {"curves": _curves(results), "members": _members(results), "risk_coverage": _risk_coverage(results)}
    return {**pairs, **drawn}


def _pairs(q: Quantity, results: dict[str, Any]) -> Figure:
    """Draw one line per seed from its value before to its value after, and the means at both sides."""
    before, after = (q.value(results, path) for path in (q.before, q.after))
    labels, colors = (
        [ARM_NAMES[path[0]] for path in (q.before, q.after)],
        [f"@{path[0]}" for path in (q.before, q.after)],
    )
    if q.after[1] == "mc":
        labels, colors = ["one pass", f"{MEMBERS} members"], ["@dropout", "@members"]
    traces: list[Trace] = []
    for seed, pair in enumerate(zip(before["per_seed"], after["per_seed"], strict=True)):
        y = [value * q.scale for value in pair]
        text = [f"seed {seed}: {q.show(value)}{q.unit}" for value in pair]
        marker = {"color": colors, "size": 9}
        traces.append(line([0, 1], y, "@line", "%{text}", width=1.25, mode="lines+markers", text=text, marker=marker))
    for x, record, color in ((-0.22, before, colors[0]), (1.22, after, colors[1])):
        dash = {"color": color, "size": 18, "symbol": "line-ew-open", "line": {"width": 3, "color": color}}
        hover = f"mean {q.show(record['mean'])}{q.unit}"
        traces.append(dots([x], [record["mean"] * q.scale], color, hover, marker=dash))
    alt = f"{q.title}, per seed: {labels[0]} {q.means(results)[0]}, {labels[1]} {q.means(results)[1]} on average"
    unit = " (%)" if q.unit else "" if q.title.startswith("RMSE") else " (nats)"
    xaxis = {"tickvals": [0, 1], "ticktext": labels, "range": [-0.5, 1.5], "showgrid": False, "zeroline": False}
    yaxis = axis(q.title.split(",")[0] + unit, zeroline=False)
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": yaxis, "showlegend": False})


def _curves(results: dict[str, Any]) -> Figure:
    """Draw the validation loss by epoch: the mean over seeds, and the band from the best seed to the worst."""
    traces: list[Trace] = []
    for name, record in _trained(results).items():
        history = record["history"]["validation_loss"]
        epochs = list(range(1, len(history) + 1))
        low, high = [min(e) for e in history], [max(e) for e in history]
        mean = [statistics.fmean(e) for e in history]
        traces += band(epochs, low, high, f"@{name}-soft")
        traces.append(line(epochs, mean, f"@{name}", "epoch %{x}: %{y:.4f}", width=2.5, name=ARM_NAMES[name]))
    alt = "validation loss by epoch, " + "; ".join(
        f"{ARM_NAMES[name]}: lowest at epoch {statistics.median(record['best_epoch']):.0f} (median over seeds)"
        for name, record in _trained(results).items()
    )
    return Figure(alt, traces, {"xaxis": axis("epoch", zeroline=False), "yaxis": _loss_axis(), "legend": _LEGEND})


def _members(results: dict[str, Any]) -> Figure:
    """Draw the NLL of the mean of members minus that of one pass, by number of members, with intervals."""
    record, dropout = results["members_needed"], results["arms"]["dropout"]
    numbers, differences = record["members"], record["to_one_pass"]
    away = [difference["estimate"] for difference in differences]
    text = [
        f"{number} members: {d['estimate']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        for number, d in zip(numbers, differences, strict=True)
    ]
    traces = [
        line(
            numbers, away, "@members", "%{text}", width=2.5, mode="lines+markers", error_y=interval_bars(differences),
            marker={"size": 8}, name="mean of members", text=text,
        ),
        _level("one pass", 0.0, "@dropout", numbers),
    ]  # fmt: skip
    alt = "NLL minus that of one pass, with 95 % intervals: " + "; ".join(text)
    if "networks" in results["arms"]:
        five = results["arms"]["networks"]["nll"]["mean"] - dropout["nll"]["mean"]
        traces.append(_level("five networks", five, "@networks", numbers))
        alt += f"; five networks {five:+.4f}"
    xaxis = axis("members (log scale)", type="log", tickvals=numbers, zeroline=False)
    yaxis = axis("NLL minus one pass's (nats)", zeroline=False)
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": yaxis, "legend": _LEGEND})


def _level(name: str, y: float, color: str, numbers: list[int]) -> Trace:
    return level(numbers, y, color, name, f"{name}: {y:+.4f}")


def _excess(results: dict[str, Any]) -> str:
    """Return by how much infinitely many members would lower the NLL, whose excess falls as one over their number."""
    record = results["members_needed"]
    half, whole = record["members"][-2:]
    excess = record["excess"][-1]["estimate"] * half / (whole - half)
    return f"{max(excess, 0.0):.4f}"


def _risk_coverage(results: dict[str, Any]) -> Figure:
    """Draw the error on the most confident rows of each way of predicting, by the share of rows kept."""
    error = quantities(results)["error"]
    label = error.title.split()[0]
    ways = [(name, name, record) for name, record in results["arms"].items() if name != "batchwise"]
    ways.insert(2, ("members", f"{MEMBERS} members", results["arms"]["dropout"]["mc"]))
    traces, ends = [], []
    for color, name, record in ways:
        curve = record["selective_prediction"]
        if curve is None:
            continue
        name = {"none": "without dropout", "dropout": "one pass", "networks": "five networks"}.get(name, name)
        y = [value * error.scale for value in curve["error"]]
        hover = f"most confident %{{x:.0f}} %: {label} %{{y:.{error.digits}f}}{error.unit}"
        x = [100 * coverage for coverage in curve["coverage"]]
        traces.append(line(x, y, f"@{color}", hover, extra=name, width=2.5, name=name))
        half = curve["coverage"].index(0.5)
        ends.append(f"{name} {error.show(curve['error'][half])}{error.unit} on half of the rows")
    xaxis = axis("share of rows kept, the most confident first (%)", range=[8, 102], dtick=20)
    yaxis = axis(f"{label} on them{' (%)' if error.unit else ''}", rangemode="tozero")
    alt = f"{label} by the share of rows kept: " + "; ".join(ends)
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": yaxis, "legend": _LEGEND})


def _arms_table(results: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of arms: a label and one text per arm."""
    arms = list(results["arms"].values())
    classification = results["identity"]["task"] == "classification"
    digits = quantities(results)["error"].digits

    def spread(record: dict[str, Any], scale: float, digits: int, unit: str = "") -> str:
        return f"{record['mean'] * scale:.{digits}f} ± {statistics.stdev(record['per_seed']) * scale:.{digits}f}{unit}"

    rows = [
        ("test error", [spread(a["error"], 100, 2, " %") for a in arms])
        if classification
        else ("test RMSE", [spread(a["error"], 1, digits) for a in arms]),
        ("test NLL (nats)", [spread(a["nll"], 1, 4) for a in arms]),
        ("training NLL (nats)", [spread(a["training_nll"], 1, 4) for a in arms]),
        ("gap, test minus training NLL", [spread(a["gap"], 1, 4) for a in arms]),
    ]
    if classification:
        rows.append(("expected calibration error", [spread(a["calibration_error"], 100, 2, " %") for a in arms]))
    for i, layer in enumerate(arms[0]["weight_norms"]):
        name = f"Linear {i + 1}" if results["identity"]["model"] is None else layer
        rows.append((f"weight norm, {name}", [spread(a["weight_norms"][layer], 1, 2) for a in arms]))
    rows.append(
        ("best epoch, median (of)", [f"{statistics.median(a['best_epoch']):.0f} ({a['epochs']})" for a in arms])
    )
    rows.append(("seconds per epoch, all seeds", [f"{a['seconds_per_epoch']:.2f}" for a in arms]))
    return rows


def _command(identity: dict[str, Any]) -> str:
    if identity["model"] is None:
        numbers = {name: ",".join(map(str, identity[name])) for name in ("hidden", "rates")}
        network = f"--hidden {numbers['hidden']} --rates {numbers['rates']} --input-rate {identity['input_rate']}"
    else:
        network = f"--model {shlex.quote(identity['model'])}"
    more = {name: identity[name] for name in ("rows", "target", "group", "time") if identity[name] is not None}
    if len(identity["arms"]) > 2:
        network += f" --arms {','.join(identity['arms'])}"
    if identity["sweep"]:
        low, high, *_ = identity["sweep"]
        network += f" --sweep {low:g}:{identity['sweep'][-1]:g}:{high - low:g}"
    if identity["groups"] is not None:
        network += f" --groups {identity['groups']}"
    rows = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in more.items())
    if identity["target"] is not None:
        rows += f" --task {identity['task']} --split-seed {identity['split_seed']}"
    return (
        f"puredrop compare {shlex.quote(identity['data'])} {network} "
        f"--epochs {identity['epochs']} --seeds {identity['seeds']}{rows}"
    )


def _trained(results: dict[str, Any]) -> dict[str, Any]:
    """Return the arms whose training is drawn: the five networks learn as the one without dropout does."""
    return {name: record for name, record in results["arms"].items() if name != "networks"}


def _loss_axis() -> dict[str, Any]:
    """Return the axis of validation losses."""
    ticks = [base * 10**power for power in range(-4, 2) for base in (1, 1.5, 2, 3, 5, 7)]
    return {"title": {"text": "validation loss (log scale)"}, "type": "log", "zeroline": False, "tickvals": ticks}


def _mean(record: dict[str, Any]) -> list[float]:
    """Return the validation loss by epoch, the mean over seeds."""
    return [statistics.fmean(epoch) for epoch in record["history"]["validation_loss"]]


def _cost(results: dict[str, Any]) -> Section:
    """Return the section on cost: seconds until an arm reaches the lowest loss of the arm without dropout."""
    target = min(_mean(results["arms"]["none"]))
    times: dict[str, float | None] = {}
    for name, record in _trained(results).items():
        epochs = [epoch for epoch, loss in enumerate(_mean(record), 1) if loss <= target]
        times[name] = epochs[0] * record["seconds_per_epoch"] if epochs else None
    texts = [
        f"{ARM_NAMES[name]} {time:.1f} s" if time is not None else f"{ARM_NAMES[name]} never"
        for name, time in times.items()
    ]
    per_epoch = ", ".join(
        f"{ARM_NAMES[name]} {record['seconds_per_epoch']:.2f} s" for name, record in _trained(results).items()
    )
    sentence = (
        f"To the lowest validation loss that the network reaches without dropout, {target:.4f}: {', '.join(texts)}."
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
    """Draw the validation loss by seconds of training, the mean over seeds, and each arm's test error."""
    traces, ends, longest = [], [], 0.0
    error = quantities(results)["error"]
    for name, record in _trained(results).items():
        mean = _mean(record)
        seconds = [record["seconds_per_epoch"] * epoch for epoch in range(1, len(mean) + 1)]
        longest = max(longest, seconds[-1])
        text = f"test {error.title.split()[0]} {error.show(record['error']['mean'])}{error.unit}"
        label = f"{ARM_NAMES[name]}, {text}"
        traces.append(line(seconds, mean, f"@{name}", "%{x:.1f} s: %{y:.4f}", width=2.5, name=label))
        ends.append(f"{ARM_NAMES[name]} {seconds[-1]:.0f} s, {text}")
    traces.append(level([0, longest], target, "@line", "target", None, hoverinfo="skip"))
    xaxis = axis("seconds of training, all seeds", zeroline=False)
    alt = f"validation loss by seconds of training, target {target:.4f}; " + "; ".join(ends)
    legend = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "top"}
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": _loss_axis(), "legend": legend})
