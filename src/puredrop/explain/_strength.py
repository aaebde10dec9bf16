"""Which L2 penalty dropout amounts to, for each weight of a trained net."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.ensemble._drive import Drive
from puredrop.ensemble._inputs import Batch
from puredrop.explain._figure import Figure
from puredrop.explain._loss import Loss, check, labels, root
from puredrop.explain._probe import Probe, checked_number, prepared
from puredrop.rng import Key

__all__ = ["L2Strength", "l2_strength"]


@dataclass(frozen=True)
class L2Strength:
    """For each weight that reads a dropped input, the L2 penalty that dropout amounts to there: ½ λ w².

    Args:
        layers: path -> float64 like the layer's weight, λ in the unit of the loss over that of the weight squared.
        shares: path -> Σ ½ λ w² over the layer's part of the Gauss-Newton penalty, which also has terms in pairs of
            weights of one unit: 1 where the diagonal says it all.
        probes: for the estimate.
    """

    layers: dict[str, Tensor]
    shares: dict[str, float]
    probes: int

    def __str__(self) -> str:
        lines = []
        for path, strength in self.layers.items():
            low, mid, high = strength.flatten().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
            lines.append(
                f"{path}: L2 strength per weight {mid:.3g} (90 % within {low:.2g} to {high:.2g}), "
                f"{self.shares[path]:.2f} of the Gauss-Newton penalty"
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """How the strengths of each layer's weights are spread."""
        traces, shares = [], torch.linspace(0, 1, 101)
        colors = ("@dropout", "@none", "@members", "@batchwise") * 99
        for (path, strength), color in zip(self.layers.items(), colors, strict=False):
            values = strength.flatten().quantile(shares.double()).tolist()
            traces.append(
                {"x": (100 * shares).tolist(), "y": values, "mode": "lines", "name": path, "line": {"color": color},
                 "hovertemplate": "%{x:.0f} % of weights below %{y:.3g}<extra>" + path + "</extra>"}
            )  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "share of weights (%)"}},
            "yaxis": {"title": {"text": "L2 strength below (log scale)"}, "type": "log"},
        }
        return Figure(str(self), traces, layout)


def l2_strength(
    model: Module, x: Any, y: Any, loss: Loss, *, probes: int = 64, seed: int = 0, batch_size: int = 1024
) -> L2Strength:
    """The L2 strength per weight that dropout amounts to in a trained net, to second order.

    The Gauss-Newton penalty of a layer that reads dropped inputs h is ½ρ Σ_j E (h_j Σ_k w_kj δ_k)², δ the loss's
    curvature root at the layer's outputs: quadratic in the weights of each input j. Its diagonal is
    λ_kj = ρ E h_j² δ_k²: stronger for inputs that are large, and for outputs to which the loss is sensitive.

    Args:
        model: with `torch.nn.Linear` layers right behind dropout layers.
        x, y, loss, probes, seed, batch_size: as for `penalty`.

    Raises:
        ValueError: as `penalty`; if no Linear reads a dropout layer's output.

    Reference: Wager, Wang and Liang: Dropout training as adaptive regularization (NeurIPS 2013), on its adaptivity.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    >>> found = l2_strength(net, torch.randn(50, 4), torch.randn(50, 1), torch.nn.functional.mse_loss)
    >>> abs(found.shares["3"] - 1) < 1e-5
    True
    """
    checked_number("probes", probes, 2)
    probe = prepared(model, x, seed=seed, batch_size=batch_size)
    targets = labels(y, probe.rows, probe.batches[0].tensors[0].device)
    sums: dict[str, Tensor] = {}
    whole: dict[str, float] = {}
    generator = torch.Generator().manual_seed(int(Key(seed).fold_in("probes")))
    with probe.opened() as drive:
        for batch, labels_of in zip(probe.batches, targets.split([one.rows for one in probe.batches]), strict=True):
            outputs, readers = _read(probe, drive, batch)
            check(loss, outputs.detach(), labels_of)
            multiply, share = root(loss, outputs, labels_of), batch.rows / probe.rows
            for _ in range(probes):
                signs = (2 * torch.randint(2, outputs.shape, generator=generator) - 1).to(outputs)
                slopes = torch.autograd.grad(
                    outputs, [one[1] for one in readers.values()], multiply(signs), retain_graph=True
                )
                for (path, (h, _, p, weight)), slope in zip(readers.items(), slopes, strict=True):
                    scale = share * p / (1 - p) / probes
                    h2, d2 = h.flatten(0, -2).double().square(), slope.flatten(0, -2).double()
                    sums[path] = sums.get(path, 0) + scale * d2.square().T @ h2
                    whole[path] = whole.get(path, 0.0) + 0.5 * scale * float(
                        ((d2 @ weight.double()).square() * h2).sum()
                    )
            weights = {path: one[3] for path, one in readers.items()}
    shares = {
        path: float((0.5 * one * weights[path].double().square()).sum()) / whole[path] if whole[path] else math.nan
        for path, one in sums.items()
    }
    return L2Strength(sums, shares, probes)


_Reader = tuple[Tensor, Tensor, float, Tensor]


def _read(probe: Probe, drive: Drive, batch: Batch) -> tuple[Tensor, dict[str, _Reader]]:
    """Outputs, and by path of each Linear that reads a site: its input, its output, the rate, its weight."""
    rates: dict[int, tuple[Tensor, float]] = {}
    readers: dict[str, _Reader] = {}

    def act(use: Any, input: Tensor, dim: int | None) -> Tensor:
        passed = input.view_as(input)
        if dim is not None and 0 < use.p < 1 and math.prod(use.sizes) == math.prod(input.shape) // batch.rows:
            rates[id(passed)] = (passed, use.p)
        return passed

    def hook(path: str) -> Any:
        def seen(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs and id(inputs[0]) in rates:
                readers[path] = (inputs[0].detach(), output, rates[id(inputs[0])][1], module.weight.detach())  # type: ignore[operator]

        return seen

    hooks = [
        module.register_forward_hook(hook(path))
        for path, module in drive.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        with torch.enable_grad():
            outputs = probe.forward(drive, batch, act)
    finally:
        for one in hooks:
            one.remove()
    if not readers:
        raise ValueError(
            "model has no torch.nn.Linear that reads what dropout of elements leaves; nothing to compare to L2"
        )
    return outputs, readers
