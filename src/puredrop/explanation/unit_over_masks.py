"""Why divide by 1 - p: one unit behind the first site over masks, beside its value in eval mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.members.inputs import Batch
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.prepared import PreparedModel
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure

__all__ = ["UnitOverMasks", "unit_over_masks"]

_LARGE = 2**20
"""Bytes of activations a row, from which fewer masks are run."""


@dataclass(frozen=True)
class UnitOverMasks:
    """The value of one unit behind the first site, before any nonlinearity, under masks of one row.

    Args:
        path: of the module whose output it is.
        unit: its number there.
        values: float64 (masks,).
        one_pass: in eval mode, every unit active.
        rms_bias: over all units of that module, the root mean square of E max(z, 0) - max(E z, 0), less what chance
            makes of it.
    """

    path: str
    unit: int
    values: Tensor
    one_pass: float
    rms_bias: float

    @property
    def mean(self) -> float:
        """Over masks."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return float(self.values.std()) / math.sqrt(len(self.values))

    @property
    def bias(self) -> float:
        """Behind a ReLU the mean over masks less the value in eval mode."""
        return float(self.values.clamp_min(0).mean()) - max(self.one_pass, 0.0)

    @property
    def bias_error(self) -> float:
        """Standard error of it."""
        return float(self.values.clamp_min(0).std()) / math.sqrt(len(self.values))

    def __str__(self) -> str:
        return (
            f"unit {self.unit} of {self.path}: {self.mean:.4g} ± {self.standard_error:.2g} over {len(self.values)} "
            f"masks, {self.one_pass:.4g} in eval mode; behind a ReLU {self.bias:+.4g} ± {self.bias_error:.2g} off"
        )

    def figure(self) -> Figure:
        """Its values over masks, with the line of eval mode."""
        counts = torch.histogram(self.values, 40)
        middles = ((counts.bin_edges[1:] + counts.bin_edges[:-1]) / 2).tolist()
        top = float(counts.hist.max()) * 1.05
        lines = [(self.one_pass, "eval mode", "@none", "solid"), (self.mean, "mean over masks", "@members", "dot")]
        traces: list[dict[str, Any]] = [
            {"type": "bar", "x": middles, "y": counts.hist.tolist(), "name": "under masks", "opacity": 0.55,
             "marker": {"color": "@dropout"}, "hovertemplate": "%{x:.3f}: %{y} masks<extra></extra>"},
            *({"x": [at, at], "y": [0, top], "mode": "lines", "name": f"{name} {at:.3f}",
               "line": {"color": color, "width": 3, "dash": dash}, "hovertemplate": f"{name}: {at:.4f}<extra></extra>"}
              for at, name, color, dash in lines),
        ]  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": f"unit {self.unit} of {self.path}, before its nonlinearity"}},
            "yaxis": {"title": {"text": "masks"}},
        }
        return Figure(str(self), traces, {**axes, "bargap": 0.05})


def unit_over_masks(prepared: PreparedModel, instrumented: InstrumentedModel, masks: int = 4000) -> UnitOverMasks:
    """Run one row under masks, and look at the units of the first module with a weight matrix behind a site.

    Args:
        probe, drive: the open model.
        masks: how many; a quarter of them where a row is large.

    Raises:
        ValueError: if no module with weights follows a site.
    """
    if prepared.survey.per_row > _LARGE:
        masks //= 4
    size = max(1, min(masks, 1000))
    row = prepared.batches[0].chosen(torch.zeros(size, dtype=torch.long))
    parts = [_behind(prepared, instrumented, row, True, first) for first in range(0, masks, size)]
    path, values = parts[0][0], torch.cat([part for _, part in parts])
    one = _behind(prepared, instrumented, prepared.batches[0].chosen(torch.zeros(2, dtype=torch.long)), False, 0)[1][0]
    spread = values.std(0)
    bent = values.clamp_min(0)
    away = (bent.mean(0) - one.clamp_min(0)).square() - bent.var(0) / len(values)
    # The one that shows most: near 0 compared with its spread, where a ReLU bends.
    near = torch.where((one > 0) & (one < spread), spread, torch.zeros_like(spread))
    unit = int((near if float(near.max()) > 0 else spread).argmax())
    return UnitOverMasks(path, unit, values[:, unit], float(one[unit]), math.sqrt(max(0.0, float(away.mean()))))


def _behind(
    prepared: PreparedModel, instrumented: InstrumentedModel, row: Batch, drops: bool, first: int
) -> tuple[str, Tensor]:
    """What the first module with weights behind a site gives, (rows, units) in float64, and its path."""
    found: list[tuple[str, Tensor]] = []
    has_dropped: list[bool] = []

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor | None:
        has_dropped.append(dim is not None)
        return None if drops else plain(use, input, dim)

    def hook(path: str) -> Any:
        def look(module: Module, inputs: Any, output: Any) -> None:
            if any(has_dropped) and not found and isinstance(output, Tensor):
                found.append((path, output.movedim(prepared.batches[0].dim, 0).flatten(1).detach().cpu().double()))

        return look

    hooks = [
        module.register_forward_hook(hook(path))
        for path, module in instrumented.model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() > 1
    ]
    try:
        prepared.forward(instrumented, row, intervention, first=first)
    finally:
        for one in hooks:
            one.remove()
    if not found:
        raise ValueError("no module with a weight matrix follows dropout on activations")
    return found[0]
