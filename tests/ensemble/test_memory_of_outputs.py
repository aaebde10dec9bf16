"""Outputs of members are kept only while they fit into the memory, also during a run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from puredrop import DropoutEnsemble
from puredrop.ensemble.running_statistics import RunningStatistics


def _net(classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))


def test_outputs_that_do_not_fit_are_dropped_as_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    most, add = [0], RunningStatistics.add

    def measured(running: RunningStatistics, outputs: Tensor) -> None:
        add(running, outputs)
        most.append(sum(part.nbytes for part in running.outputs))

    monkeypatch.setattr(RunningStatistics, "add", measured)
    ensemble, x, memory = DropoutEnsemble(_net(500)), torch.randn(20, 4), 1_000_000
    prediction = ensemble.predict(x, members=64, memory=memory)
    assert prediction.outputs is None
    assert max(most) < memory + 16 * 20 * 500 * 4 < 64 * 20 * 500 * 4
    assert torch.equal(prediction.mean, ensemble.predict(x, members=64, memory=memory, keep=0).mean)


def test_outputs_that_fit_and_outputs_that_are_asked_for_are_kept() -> None:
    ensemble, x = DropoutEnsemble(_net(500)), torch.randn(20, 4)
    for options in ({}, {"memory": 1_000_000, "keep": 64}):
        outputs = ensemble.predict(x, members=64, **options).outputs
        assert outputs is not None
        assert outputs.shape == (64, 20, 500)
