"""Which rate: copies at every rate trained as one batched model under common masks, compared on validation rows."""

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

__all__ = ["Sweep", "section", "swept"]


@dataclass(frozen=True)
class Sweep:
    """A network at several rates: all seeds at the first, then all at the second, and so on.

    At one step a unit of a seed meets the same random number at every rate: what a lower rate drops, a higher one
    drops, too. So two rates differ by what lies between them, and not by luck.

    Args:
        network: its shape; its own rates are not used.
        rates: of every hidden layer.
    """

    network: Network
    rates: tuple[float, ...]
    splits = False

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Those of a seed are the same at every rate."""
        count = len(seeds) // len(self.rates)
        return {
            name: value.repeat(len(self.rates), *[1] * (value.dim() - 1))
            for name, value in self.network.initial(seeds[:count]).items()
        }

    def trainable(self, parameters: Parameters) -> Parameters:
        """All of them."""
        return parameters

    def module(self, parameters: Parameters, copy: int, *, dropout: bool = True) -> Module:
        """One copy by itself."""
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
        """As `Network.outputs`; all copies at once, with a mask for each row."""

        def drop(h: Tensor, rate: float, site: str) -> Tensor:
            if key is None or site == "input":
                return h
            parts = h.unflatten(0, (len(self.rates), -1)).unbind(0)
            return torch.cat(
                [functional.dropout(part, p, key=key.fold_in(site)) for part, p in zip(parts, self.rates, strict=True)]
            )

        return self.network.forward(parameters, x, drop)


@torch.no_grad()
def swept(sweep: Sweep, best: Parameters, data: Data, seconds: float) -> dict[str, Any]:
    """What was found, for results.json: validation loss by rate, each beside the best.

    Args:
        sweep: what was trained.
        best: the parameters of each copy's best epoch.
        data: of which the validation rows are judged; the test rows choose no rate.
        seconds: that training took.
    """
    rows = data.validation
    copies = len(next(iter(best.values())))
    outputs = sweep.outputs(best, rows.x.expand(copies, -1, -1))
    losses = data.task.loss(outputs, rows.y).double().cpu().unflatten(0, (len(sweep.rates), -1)).numpy()
    means = losses.mean((1, 2))
    least = int(means.argmin())
    differences = [paired_difference(one - losses[least]).as_dict() for one in losses]
    # A rate lies within noise of the best if it was not found worse; of these, those next to the best.
    low = high = least
    while low > 0 and not differences[low - 1]["found"]:
        low -= 1
    while high + 1 < len(means) and not differences[high + 1]["found"]:
        high += 1
    return {
        "rates": list(sweep.rates),
        "loss": [
            {"mean": float(mean), "per_seed": one.mean(1).tolist()} for mean, one in zip(means, losses, strict=True)
        ],
        "to_best": differences,
        "best": sweep.rates[least],
        "interval": [sweep.rates[low], sweep.rates[high]],
        "rows": len(rows.y),
        "seconds": seconds,
    }


def section(found: dict[str, Any], is_class: bool) -> Section:
    """Of the page."""
    low, high = found["interval"]
    best, rates = found["best"], found["rates"]
    worst = max(range(len(rates)), key=lambda i: found["loss"][i]["mean"])
    label = "validation NLL (nats)" if is_class else "validation loss"
    within = f"any p in [{low:g}, {high:g}] is within noise" if low < high else "no rate beside it is within noise"
    at_best = found["loss"][rates.index(best)]["mean"]
    sentence = (
        f"p={best:g}; {within}. {label[0].upper()}{label[1:]} {at_best:.4f} there, "
        f"{found['loss'][worst]['mean']:.4f} at p={rates[worst]:g}, the worst."
    )
    how = (
        f"{len(rates)} rates by {len(found['loss'][0]['per_seed'])} seeds trained as one batched model in "
        f"{found['seconds']:.0f} s, every hidden layer at the same rate, each copy judged at its best epoch on "
        f"{found['rows']} validation rows. What a lower rate drops a higher one drops, too. Within noise: not found "
        "worse than the best by its paired 95 % interval over seeds and rows, and next to it. The best of several is "
        "better by luck, too: its own loss is too low by about that."
    )
    return Section(
        "rates", "Which p?", sentence, f"p={best:g}", "lowest on validation rows", (_figure(found, label),), how
    )


def _figure(found: dict[str, Any], label: str) -> Figure:
    """Loss by rate, with the interval of the difference to the best around each, and the band within noise."""
    rates, losses = found["rates"], [one["mean"] for one in found["loss"]]
    away = found["to_best"]
    text = [
        f"p={p:g}: {loss:.4f}, to the best {one['estimate']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
        for p, loss, one in zip(rates, losses, away, strict=True)
    ]
    low, high = found["interval"]
    step = (rates[1] - rates[0]) / 2 if len(rates) > 1 else 0.05
    band = {
        "type": "rect", "xref": "x", "yref": "paper", "x0": low - step, "x1": high + step, "y0": 0, "y1": 1,
        "fillcolor": "@dropout-soft", "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
    traces = [
        line(
            rates, losses, "@dropout", "%{text}", width=2.5, mode="lines+markers", error_y=interval_bars(away),
            marker={"size": 8}, text=text,
        )
    ]  # fmt: skip
    alt = f"{label} by rate, with 95 % intervals of the difference to the best: {'; '.join(text)}"
    xaxis = axis("rate of every hidden layer", tickvals=rates, zeroline=False)
    yaxis = axis(label, zeroline=False)
    return Figure(alt, traces, {"xaxis": xaxis, "yaxis": yaxis, "shapes": [band], "showlegend": False})
