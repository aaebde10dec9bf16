"""A sweep of rates: copies at every rate train as one batched model under common masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import functional
from puredrop.compare.data import Data
from puredrop.compare.network import Network, Parameters
from puredrop.report.figures import Figure, axis, interval_bars, line
from puredrop.report.intervals import paired_difference
from puredrop.report.section import Section
from puredrop.rng import Key

__all__ = ["Sweep", "section", "sweep_record"]


@dataclass(frozen=True)
class Sweep:
    """A network at several rates: all seeds at the first, then all at the second, and so on.

    At one step a unit of a seed meets the same random number at every rate: what a lower rate drops, a higher one
    drops, too. So two rates differ by what lies between them, and not by luck.

    Args:
        network: the shape of the network, whose own rates are not used.
        rates: each a drop probability of every hidden layer.
    """

    network: Network
    rates: tuple[float, ...]
    splits = False

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Return fresh parameters; those of a seed are the same at every rate."""
        count = len(seeds) // len(self.rates)
        return {
            name: value.repeat(len(self.rates), *[1] * (value.dim() - 1))
            for name, value in self.network.initial(seeds[:count]).items()
        }

    def trainable(self, parameters: Parameters) -> Parameters:
        """Return all parameters."""
        return parameters

    def module(self, parameters: Parameters, copy: int, *, dropout: bool = True) -> Module:
        """Return one copy by itself, in eval mode."""
        return self.network.module(parameters, copy, dropout=dropout)

    def outputs(
        self,
        parameters: Parameters,
        x: Tensor,
        key: Key | None = None,
        *,
        one_mask: bool = False,
        training: bool = False,
        first: int = 0,
        groups: int | None = None,
    ) -> Tensor:
        """Run every copy on its own rows, each row under its own mask; the arguments are those of `Network.outputs`."""

        def drop(h: Tensor, rate: float, site: str) -> Tensor:
            if key is None or site == "input":
                return h
            parts = h.unflatten(0, (len(self.rates), -1)).unbind(0)
            return torch.cat(
                [functional.dropout(part, p, key=key.fold_in(site)) for part, p in zip(parts, self.rates, strict=True)]
            )

        return self.network.forward(parameters, x, drop)


@torch.no_grad()
def sweep_record(sweep: Sweep, best: Parameters, data: Data, seconds: float) -> dict[str, Any]:
    """Return the validation loss by rate, and each rate's difference to the best, as results.json holds them.

    Args:
        sweep: the network and its rates.
        best: the parameters of each copy's best epoch.
        data: the validation rows are judged; the test rows choose no rate.
        seconds: time that training took.
    """
    rows = data.validation
    copies = len(next(iter(best.values())))
    outputs = sweep.outputs(best, rows.x.expand(copies, -1, -1))
    losses = data.task.loss(outputs, rows.y).double().cpu().unflatten(0, (len(sweep.rates), -1)).numpy()
    means = losses.mean((1, 2))
    least = int(means.argmin())
    differences = [paired_difference(loss - losses[least]).as_dict() for loss in losses]
    # A rate lies within noise of the best if it was not found worse; of these, those next to the best.
    low = high = least
    while low > 0 and not differences[low - 1]["found"]:
        low -= 1
    while high + 1 < len(means) and not differences[high + 1]["found"]:
        high += 1
    return {
        "rates": list(sweep.rates),
        "loss": [
            {"mean": float(mean), "per_seed": loss.mean(1).tolist()} for mean, loss in zip(means, losses, strict=True)
        ],
        "to_best": differences,
        "best": sweep.rates[least],
        "interval": [sweep.rates[low], sweep.rates[high]],
        "rows": len(rows.y),
        "seconds": seconds,
    }


def section(record: dict[str, Any], is_class: bool) -> Section:
    """Return the section of the page, from what `sweep_record` returns."""
    low, high = record["interval"]
    best, rates = record["best"], record["rates"]
    worst = max(range(len(rates)), key=lambda i: record["loss"][i]["mean"])
    label = "validation NLL (nats)" if is_class else "validation loss"
    within = f"any p in [{low:g}, {high:g}] is within noise" if low < high else "no neighbouring rate is within noise"
    at_best = record["loss"][rates.index(best)]["mean"]
    sentence = (
        f"p={best:g}; {within}. {label[0].upper()}{label[1:]} {at_best:.4f} there, "
        f"{record['loss'][worst]['mean']:.4f} at p={rates[worst]:g}, the worst."
    )
    how = (
        f"{len(rates)} rates by {len(record['loss'][0]['per_seed'])} seeds trained as one batched model in "
        f"{record['seconds']:.0f} s, every hidden layer at the same rate, each copy judged at its best epoch on "
        f"{record['rows']} validation rows. What a lower rate drops a higher one drops, too. Within noise: not found "
        "worse than the best by its paired 95 % interval over seeds and rows, and next to it. The best of several is "
        "better by luck, too: its own loss is too low by about that."
    )
    return Section(
        "rates", "Which p?", sentence, f"p={best:g}", "lowest on validation rows", (_figure(record, label),), how
    )


def _figure(record: dict[str, Any], label: str) -> Figure:
    """Draw the loss by rate, the interval of the difference to the best around each, and the band within noise."""
    rates, losses = record["rates"], [loss["mean"] for loss in record["loss"]]
    differences = record["to_best"]
    text = [
        f"p={p:g}: {loss:.4f}, to the best {d['estimate']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        for p, loss, d in zip(rates, losses, differences, strict=True)
    ]
    low, high = record["interval"]
    step = (rates[1] - rates[0]) / 2 if len(rates) > 1 else 0.05
    band = {
        "type": "rect", "xref": "x", "yref": "paper", "x0": low - step, "x1": high + step, "y0": 0, "y1": 1,
        "fillcolor": "@dropout-soft", "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
    traces = [
        line(
            rates, losses, "@dropout", "%{text}", width=2.5, mode="lines+markers", error_y=interval_bars(differences),
            marker={"size": 8}, text=text,
        )
    ]  # fmt: skip
    alt = f"{label} by rate, with 95 % intervals of the difference to the best: {'; '.join(text)}"
    xaxis = axis("rate of every hidden layer", tickvals=rates, zeroline=False)
    yaxis = axis(label, zeroline=False)
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": yaxis, "shapes": [band], "showlegend": False})
