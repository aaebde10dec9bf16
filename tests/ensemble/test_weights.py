"""Weights that are not finite are named, and not carried into predictions and pages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import puredrop
from puredrop import DropoutEnsemble


def _net(value: float) -> nn.Sequential:
    last = nn.Linear(16, 3)
    last.weight.data[1, 2] = value
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), last)


_CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "predict": lambda net, x, y: DropoutEnsemble(net).predict(x),
    "regression": lambda net, x, y: DropoutEnsemble(net, "regression").predict(x),
    "weight_scaling": lambda net, x, y: DropoutEnsemble(net).weight_scaling(x),
    "moments": lambda net, x, y: DropoutEnsemble(net).moments(x),
    "exact": lambda net, x, y: DropoutEnsemble(net).exact(x),
    "explain": lambda net, x, y: puredrop.explain(net, x, y),
    "measure": lambda net, x, y: puredrop.explain.weight_scaling_gap(net, x),
}


@pytest.mark.parametrize(("value", "count"), [(math.nan, "1 NaN and 0"), (math.inf, "0 NaN and 1")])
@pytest.mark.parametrize("name", _CALLS)
def test_weights_that_are_not_finite_are_named(name: str, value: float, count: str) -> None:
    with pytest.raises(ValueError, match=rf"weights are not finite: 3\.weight \({count} infinite of 48\)"):
        _CALLS[name](_net(value), torch.randn(10, 4), torch.arange(10) % 3)


def test_weights_that_fail_later_are_named() -> None:
    net, x = _net(0.5), torch.randn(10, 4)
    ensemble = DropoutEnsemble(net)
    ensemble.predict(x)
    net[0].bias.data[3] = math.nan  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"0\.bias \(1 NaN"):
        ensemble.predict(x)


def test_a_mask_of_minus_infinity_is_no_mistake() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -math.inf]))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.drop(x) + self.mask
            return scores.softmax(-1)

    assert DropoutEnsemble(Masked(), "regression").predict(torch.randn(5, 3)).mean[:, 2].tolist() == [0.0] * 5


def test_outputs_that_are_not_finite_by_themselves_are_kept() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            dropped: Tensor = self.drop(x)
            return dropped.log()

    assert DropoutEnsemble(Logarithm(), "regression").predict(-torch.rand(5, 3)).mean.shape == (5, 3)
