"""A model, and a loop that trains and evaluates it under a watch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from puredrop import WatchWarning, watch

X = torch.randn(8, 6)


class Net(nn.Module):
    """Dropout by a layer, by a function with a rate of the module, and by a function with a rate in the code."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.3))
        self.middle = Rated()
        self.head = Fixed()

    def forward(self, x):
        return self.head(self.middle(self.encoder(x)))


class Rated(nn.Module):
    def __init__(self, rate=0.2):
        super().__init__()
        self.dropout_rate = rate

    def forward(self, x):
        return F.dropout(x, self.dropout_rate, self.training)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(F.dropout(x, 0.1, self.training))


class Loop:
    """A model with its optimizer and its watch."""

    def __init__(self, model=None, **named):
        torch.manual_seed(0)
        self.model = Net() if model is None else model
        self.call = self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.watch = watch(self.model, self.optimizer, **named)

    def forward(self):
        loss = self.call(X).square().mean()
        loss.backward()

    def step(self, forwards=1):
        for _ in range(forwards):
            self.forward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self, batches=2, context=torch.no_grad):
        with context():
            for _ in range(batches):
                self.call(X)

    @property
    def found(self):
        return [(one.code, one.place, one.step) for one in self.watch.report]


def reported(code):
    return pytest.warns(WatchWarning, match=code)
