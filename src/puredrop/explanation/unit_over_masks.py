"""Why divide by 1 - p: one unit after the first site over masks, compared with its value in eval mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._result import Result
from puredrop.explanation.subject import Case, Question
from puredrop.members.inputs import Batch
from puredrop.members.prepared import PreparedModel, Runner, keep_all
from puredrop.members.sites import SiteUse
from puredrop.report.figures import Figure, axis, bars, line
from puredrop.report.section import Section, signed

__all__ = ["QUESTION", "UnitOverMasks", "measure", "section", "unit_over_masks"]

QUESTION = Question("division", "Why divide by 1 − p?")
_LARGE = 2**20
"""Bytes of activations of a row, from which fewer masks are run."""


@dataclass(frozen=True, repr=False)
class UnitOverMasks(Result):
    """The value of one unit after the first site, before any nonlinearity, under masks of one row.

    Args:
        path: of the module whose output it is.
        unit: its number there.
        values: float64 (masks,).
        one_pass: its value in eval mode, every unit active.
        rms_bias: over all units of that module, the root mean square of E max(z, 0) - max(E z, 0), less what chance
            adds.
    """

    path: str
    unit: int
    values: Tensor
    one_pass: float
    rms_bias: float

    @property
    def mean(self) -> float:
        """The mean over masks."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return float(self.values.std()) / math.sqrt(len(self.values))

    @property
    def bias(self) -> float:
        """After a ReLU, the mean over masks less the value in eval mode."""
        return float(self.values.clamp_min(0).mean()) - max(self.one_pass, 0.0)

    @property
    def bias_error(self) -> float:
        """The standard error of the bias."""
        return float(self.values.clamp_min(0).std()) / math.sqrt(len(self.values))

    def __str__(self) -> str:
        return (
            f"unit {self.unit} of {self.path}: {self.mean:.4g} ± {self.standard_error:.2g} over {len(self.values)} "
            f"masks, {self.one_pass:.4g} in eval mode; after a ReLU {self.bias:+.4g} ± {self.bias_error:.2g} off"
        )

    def figure(self) -> Figure:
        """Draw the values over masks, with their mean and the value of eval mode."""
        counts = torch.histogram(self.values, 40)
        middles = ((counts.bin_edges[1:] + counts.bin_edges[:-1]) / 2).tolist()
        top = float(counts.hist.max()) * 1.05
        lines = [(self.one_pass, "eval mode", "@none", "solid"), (self.mean, "mean over masks", "@members", "dot")]
        traces = [
            bars(middles, counts.hist.tolist(), "@dropout", "%{x:.3f}: %{y} masks", name="under masks", opacity=0.55),
            *(
                line([at, at], [0, top], color, f"{name}: {at:.4f}", name=f"{name} {at:.3f}", width=3, dash=dash)
                for at, name, color, dash in lines
            ),
        ]
        axes = {"xaxis": axis(f"unit {self.unit} of {self.path}, before its nonlinearity"), "yaxis": axis("masks")}
        return Figure(str(self), traces, {**axes, "bargap": 0.05})

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the unit's value under each mask."""
        return {"mask": list(range(len(self.values))), "value": self.values.tolist()}


def unit_over_masks(prepared: PreparedModel, masks: int = 4000) -> UnitOverMasks:
    """Run one row under masks, and record a unit of the first module with a weight matrix after a site.

    Args:
        prepared: the model and its data.
        masks: how many; a quarter of them where a row is large.

    Raises:
        ValueError: if no module with weights follows a site.
    """
    if prepared.survey.per_row > _LARGE:
        masks //= 4
    size = max(1, min(masks, 1000))
    row = prepared.batches[0].select(torch.zeros(size, dtype=torch.long))
    with prepared.instrument() as runner:
        parts = [_after_site(runner, row, True, first) for first in range(0, masks, size)]
        two = prepared.batches[0].select(torch.zeros(2, dtype=torch.long))
        one_pass = _after_site(runner, two, False, 0)[1][0]
    path, values = parts[0][0], torch.cat([part for _, part in parts])
    spread = values.std(0)
    bent = values.clamp_min(0)
    away = (bent.mean(0) - one_pass.clamp_min(0)).square() - bent.var(0) / len(values)
    # The unit that shows most is near 0 compared with its spread, where a ReLU bends.
    near = torch.where((one_pass > 0) & (one_pass < spread), spread, torch.zeros_like(spread))
    unit = int((near if float(near.max()) > 0 else spread).argmax())
    return UnitOverMasks(path, unit, values[:, unit], float(one_pass[unit]), math.sqrt(max(0.0, float(away.mean()))))


measure = unit_over_masks


def _after_site(runner: Runner, row: Batch, drops: bool, first: int) -> tuple[str, Tensor]:
    """Return the path of the first module with weights after a site, and its output, float64 (rows, units)."""
    recorded: list[tuple[str, Tensor]] = []
    has_dropped: list[bool] = []

    def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor | None:
        has_dropped.append(dim is not None)
        return None if drops else keep_all(use, input, dim)

    def hook(path: str) -> Any:
        def record(module: Module, inputs: Any, output: Any) -> None:
            if any(has_dropped) and not recorded and isinstance(output, Tensor):
                rows_first = output.movedim(runner.prepared.batches[0].dim, 0)
                recorded.append((path, rows_first.flatten(1).detach().cpu().double()))

        return record

    hooks = [
        module.register_forward_hook(hook(path))
        for path, module in runner.model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() > 1
    ]
    try:
        runner.forward(row, intervention, first=first)
    finally:
        for handle in hooks:
            handle.remove()
    if not recorded:
        raise ValueError("no module with a weight matrix follows dropout on activations")
    return recorded[0]


def section(case: Case) -> Section:
    """Report that scaling by 1/(1-p) preserves a unit's mean over masks, and how far a ReLU shifts the mean."""
    unit = measure(case.prepared)
    sentence = (
        f"Kept units are scaled by 1/(1-p), so a unit's mean over masks ({unit.mean:.3f} ± "
        f"{1.96 * unit.standard_error:.3f} here) matches its value in eval mode ({unit.one_pass:.3f}), which needs no "
        f"scaling. After a nonlinearity this no longer holds exactly: a ReLU's mean is {signed(unit.bias, 3)} off."
    )
    how = (
        f"The first row of the data under {len(unit.values):,} masks; unit {unit.unit} of {unit.path}, the first "
        "module with weights after a site, before its nonlinearity: the unit of largest spread among those near 0. "
        f"Bias after a ReLU: {signed(unit.bias)} ± {unit.bias_error:.4f} (standard error); over all units of this "
        f"module {unit.rms_bias:.4f} (rms). ± in the sentence is half a 95 % interval."
    )
    return QUESTION.answer(sentence, signed(unit.bias, 3), "off after a ReLU", how, unit.figure())
