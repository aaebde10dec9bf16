"""A hand-written model: where does it drop, what is wrong, and the same masks again.

Needs nothing beyond puredrop. Run it from anywhere: python examples/by_hand.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop import Key
from puredrop.functional import intercept


class Net(nn.Module):
    """Two mistakes: a dropout that eval() does not switch off, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.spare = nn.Linear(8, 32), nn.Linear(32, 3), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of three classes."""
        return self.second(F.dropout(F.relu(self.first(x)), 0.5))


net, x = Net(), torch.randn(16, 8)
print(puredrop.sites(net, x), end="\n\n")
print(puredrop.check(net, x), end="\n\n")
with intercept(Key(0)):
    first = net(x)
with intercept(Key(0)):
    second = net(x)
print("the same masks under the same key:", torch.equal(first, second))
