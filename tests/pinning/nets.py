"""Networks whose masks can be read, for the tests here and for the processes that they start."""

import torch
import torch.nn.functional as F
from torch import nn

import puredrop


class Mixed(nn.Module):
    """A block of every kind of site: our layer, torch's, a function, attention, a site used twice."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.ours = puredrop.nn.Dropout(0.4)
        self.theirs = nn.Dropout(0.3)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.2, batch_first=True)
        self.last = nn.Linear(width, width)

    def forward(self, x):
        h = self.ours(torch.tanh(self.first(x)))
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = self.theirs(torch.tanh(h))
        h = F.dropout(torch.tanh(self.last(h)), 0.5, self.training)
        return self.ours(h + x)


class Net(nn.Module):
    """Two blocks and a head, on inputs (samples, tokens, width)."""

    def __init__(self, width=16):
        super().__init__()
        self.blocks = nn.ModuleList([Mixed(width), Mixed(width)])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(F.dropout(x.mean(1), 0.1, self.training))


class MLP(nn.Module):
    """Ours only: what runs without interception."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.drop = puredrop.nn.Dropout(0.5)
        self.last = nn.Linear(2 * width, width)
        self.out = puredrop.nn.Dropout(0.2)

    def forward(self, x):
        return self.out(torch.tanh(self.last(self.drop(torch.tanh(self.first(x))))))


class Masks:
    """Records what every call of the operator kept, by the order of the calls; samples along the first dimension."""

    def __init__(self):
        self.kept = []

    def __enter__(self):
        self._operator = puredrop.ops.dropout
        original = self._operator

        def recorded(input, key, p, place, inplace=False):
            # What is kept of ones is the mask, whatever the input holds.
            key, place = puredrop.ops.resolve_key("dropout", input, key, place)
            if isinstance(key, puredrop.ops.DropoutOverride):
                return original(input, key, p, place, inplace)  # of a trial, which drops nothing
            self.kept.append(original(torch.ones_like(input), key, p, place).ne(0))
            return original(input, key, p, place, inplace)

        puredrop.ops.dropout = recorded
        return self

    def __exit__(self, *_):
        puredrop.ops.dropout = self._operator


def masks(model, *inputs):
    """Every mask of one forward."""
    with Masks() as record:
        model(*inputs)
    return record.kept


def same(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stacked(parts):
    """Masks of several forwards, along the samples."""
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
