"""A run that is stopped and resumed has the masks, and so the weights, of one that was not.

Needs nothing beyond puredrop. Run it from anywhere: python examples/resume.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import puredrop


class Net(nn.Module):
    """A layer that drops, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number per row."""
        hidden = self.drop(F.relu(self.first(F.dropout(x, 0.1, self.training))))
        output: torch.Tensor = self.last(hidden)
        return output


def start() -> tuple[Net, torch.optim.Optimizer, Any]:
    """A fresh run."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, puredrop.reproducible(net, seed=1).attach(optimizer)


def train(net: Net, optimizer: torch.optim.Optimizer, run: Any, until: int) -> None:
    """The rows of a step depend on nothing but its number."""
    while run.step < until:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(run.step))
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


whole = start()
train(*whole, until=20)

folder = Path(tempfile.mkdtemp())
net, optimizer, run = start()
train(net, optimizer, run, until=13)
torch.save(net.state_dict(), folder / "net.pt")
(folder / "run.json").write_text(json.dumps(run.state_dict()))

torch.rand(1000)  # whatever else draws random numbers
net, optimizer, run = start()
net.load_state_dict(torch.load(folder / "net.pt", weights_only=True))
run.load_state_dict(json.loads((folder / "run.json").read_text()))
train(net, optimizer, run, until=20)
same = all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), net.parameters(), strict=True))
print("resumed at step 13, the same weights at step 20:", same)
