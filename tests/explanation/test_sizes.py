"""An analysis that the machine's memory does not take is refused before it is begun."""

import pytest
import torch
from torch import nn

from puredrop import explain
from puredrop.explanation import analysis


def test_many_outputs_are_refused_with_the_limit(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 3000))
    x, y = torch.randn(50, 4), torch.randint(3000, (50,))
    monkeypatch.setattr(analysis, "machine_memory", lambda: 10**9)
    asked = []
    with pytest.raises(
        ValueError, match="rows is 50 and members is 64: with 3000 outputs of a row they need 1"
    ) as info:
        explain(net, x, y, on_question=asked.append)
    assert str(info.value).endswith("1.2 GB, and this machine has 1.0; expected fewer rows or members")
    assert asked == []


@pytest.mark.parametrize("memory", [None, 120 * 12 * 16 * 3])
def test_what_fits_is_analysed(monkeypatch, memory):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 3))
    monkeypatch.setattr(analysis, "machine_memory", lambda: memory)
    assert explain(net, torch.randn(12, 4), torch.randint(3, (12,)), members=16).sections
