"""Siblings of each mistake in a model's training: bad ones, and right ones that differ by little."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop import check

ROWS = torch.randn(16, 8)


class Net(nn.Module):
    """Two layers with a function of the module and the hidden units between them."""

    def __init__(self, between, train=None, **parts):
        super().__init__()
        self.first, self.last, self.between, self.how = nn.Linear(8, 8), nn.Linear(8, 3), between, train
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))

    def train(self, mode=True):
        return super().train(mode) if self.how is None else self.how(self, super().train, mode)


def codes(model, *inputs):
    return [finding.code for finding in check(model, *(inputs or (ROWS,)))]


class Own(nn.Module):
    """A dropout layer of the user's."""

    def __init__(self, function, p=0.5):
        super().__init__()
        self.p, self.function = p, function

    def forward(self, x):
        return self.function(self, x)


class OwnDropout(Own):
    pass


def called(m, h):
    return m.drop(h)


def in_eval_always(m, train, mode):
    return train(False)


def part_in_eval(m, train, mode):
    train(mode)
    m.part.eval()
    return m


def not_back(m, train, mode):
    if not mode:
        return train(False)
    m.training = True
    return m


def part(frozen):
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Dropout(0.2)).requires_grad_(not frozen)


def rested(m, h):
    m.drop.eval()
    return m.drop(h)


NEVER_ON = {
    "literal": Net(lambda m, h: F.dropout(h, 0.5, training=False)),
    "alpha's default": Net(lambda m, h: F.feature_alpha_dropout(h, 0.5)),
    "whole model": Net(called, in_eval_always, drop=nn.Dropout(0.5)),
    "a part": Net(lambda m, h: m.part(h), part_in_eval, part=part(False)),
    "after an evaluation": Net(called, not_back, drop=nn.Dropout(0.5)),
    "in forward": Net(rested, drop=nn.Dropout(0.5)),
    "own layer": Net(called, drop=OwnDropout(lambda m, x: F.dropout(x, m.p, False))),
    "recurrent": Net(lambda m, h: m.part(h)[0], part_in_eval, part=nn.LSTM(8, 8, 2, dropout=0.5)),
}
ON = {
    "literal rate": Net(lambda m, h: F.dropout(h, 0.5 if m.training else 0.0)),
    "no rate": Net(lambda m, h: F.dropout(F.dropout(h, 0.0, False), 0.5, m.training)),
    "frozen part": Net(lambda m, h: F.dropout(m.part(h), 0.5, m.training), part_in_eval, part=part(True)),
    "own layer with a warm-up": Net(called, drop=OwnDropout(lambda m, x: x)),
    "layer of ours": Net(called, drop=puredrop.nn.DropPath(0.5)),
    "gaussian": Net(called, drop=puredrop.nn.GaussianDropout(0.5)),
    "attention": Net(lambda m, h: m.part(h, h, h)[0], part=nn.MultiheadAttention(8, 2, 0.5)),
}


def test_dropout_that_is_never_on_in_training():
    assert {name: codes(model) for name, model in NEVER_ON.items()} == {name: ["PD202"] for name in NEVER_ON}
    assert {name: codes(model) for name, model in ON.items()} == {name: [] for name in ON}
    (found,) = check(NEVER_ON["a part"], ROWS)
    assert (found.place, found.detail) == ("part", "stays in eval mode after model.train(), with 2 sites")
    notes = [site.note for site in puredrop.sites(NEVER_ON["a part"], ROWS)]
    assert notes == ["does not drop in training mode, stays in eval mode"] * 2


def sets(change):
    """Return a function that drops, and makes a change in eval mode."""

    def between(m, h):
        if not m.training:
            change(m)
        return m.drop(h) if m.flag else h

    return between


def zero(m, train, mode):
    m.drop.p = m.drop.p if mode else 0.0
    return train(mode)


def zero_and_back(m, train, mode):
    m.drop.p = 0.5 if mode else 0.0
    return train(mode)


def counted(m, h):
    m.calls += m.training
    return F.dropout(h, 0.5 if m.calls < 2 else 0.0, m.training)


def kept_mask(m, h):
    if m.training and m.mask is None:
        m.mask = F.dropout(torch.ones_like(h), 0.5)
    return h * m.mask if m.training else h


def test_dropout_that_an_evaluation_ends():
    def nothing(m):
        pass

    for change, train in (
        (lambda m: setattr(m.drop, "p", 0.0), None),
        (lambda m: setattr(m, "drop", nn.Identity()), None),
        (lambda m: setattr(m, "flag", False), None),
        (nothing, zero),
    ):
        model = Net(sets(change), train, drop=nn.Dropout(0.5), flag=True)
        assert codes(model) == ["PD204"]
        assert (model.drop.p, model.flag) == (0.5, True)
    assert codes(Net(sets(nothing), zero_and_back, drop=nn.Dropout(0.5), flag=True)) == []
    # Ended by training steps, not by an evaluation.
    assert codes(Net(counted, calls=0)) == []
    assert codes(Net(kept_mask, mask=None)) == []


def by_statement(m, h):
    m.drop(h)
    return h


def never_read(m, h):
    dropped = m.drop(h)  # noqa: F841
    return h + 0


def overwritten(m, h):
    out = F.dropout(h, 0.5, m.training)
    out = m.first(h)
    return out  # noqa: RET504


def helper(m, h):
    return F.dropout(h, 0.5, m.training)


def by_helper(m, h):
    helper(m, h)
    return h


def kept(m, h):
    m.kept = m.drop(h)
    return h


def as_numpy(m, h):
    m.norm = float(m.drop(h).numpy().sum())
    return h


def detached(m, h):
    return h + m.drop(h).data


def listed(m, h):
    parts = []
    parts.append(m.drop(h))
    return torch.cat(parts)


def in_a_loop(m, h):
    for _ in range(2):
        dropped = m.drop(h)
        h = m.first(h)
    return dropped


def in_place(m, h):
    h = h.clone()
    F.dropout(h, 0.5, m.training, inplace=True)
    return h


class Double(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2


def doubled(m, h):
    return Double.apply(m.drop(h))


def drop_path(m, x):
    mask = x.new_empty(len(x), 1).bernoulli_(1 - m.p)
    out = x * mask / (1 - m.p)
    return out if m.training else x


def test_results_that_are_thrown_away():
    layers = (nn.Dropout(0.5), puredrop.nn.Dropout(0.5), OwnDropout(drop_path))
    for between in (by_statement, never_read):
        assert [codes(Net(between, drop=layer)) for layer in layers[:2]] == [["PD203"]] * 2
    assert "PD203" in codes(Net(by_statement, drop=layers[2]))
    assert codes(Net(overwritten)) == codes(Net(by_helper)) == ["PD203"]
    for between in (called, kept, as_numpy, detached, listed, in_a_loop, doubled):
        assert codes(Net(between, drop=nn.Dropout(0.5))) == [], between
    assert codes(Net(in_place)) == []
    assert codes(Net(by_statement, drop=puredrop.nn.Dropout(0.5, inplace=True))) == []


class Held(nn.Module):
    def __init__(self, rate=0.3):
        super().__init__()
        self.dropout_rate, self.layer = rate, nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)


class Configured(Held):
    def __init__(self):
        config = SimpleNamespace(dropout_rate=0.3, width=8)
        super().__init__(config.width / 10)
        self.dropout_rate = config.dropout_rate
        self.other = nn.Linear(config.width, config.width)


class HeldAndShown(Held):
    def extra_repr(self):
        return f"p={self.dropout_rate}"


class Branches(Held):
    def forward(self, x):
        return F.dropout(self.layer(x), self.dropout_rate, self.training) if len(x) > 99 else self.layer(x)


class HandedOn(nn.Module):
    def __init__(self, rate=0.3):
        super().__init__()
        self.dropout_rate, self.layer, self.drop = rate, nn.Linear(8, 8), nn.Dropout(rate / 2)

    def forward(self, x):
        return self.drop(self.layer(x))


class Elsewhere(Held):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.layer(self.drop(x))


def read_from_outside(m, h):
    return F.dropout(m.part(h), m.part.dropout_rate * m.training)


def test_rates_that_nothing_uses():
    for kind in (Held, HeldAndShown, Configured):
        model = Net(lambda m, h: m.part(h), part=kind())
        assert [(f.code, f.place, f.detail) for f in check(model, ROWS)] == [("PD205", "part", "dropout_rate=0.3")]
        assert type(model.part) is kind
    for kind in (Branches, HandedOn, Elsewhere):
        assert codes(Net(lambda m, h: m.part(h), part=kind())) == [], kind
    assert codes(Net(read_from_outside, part=Held())) == []
    assert codes(Net(lambda m, h: h, part=Held())) == []  # the part did not run
    assert codes(Net(lambda m, h: m.part(h), part=Held(0.0))) == []


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: tuple = ()
    attentions: tuple = ()


Named = namedtuple("Named", ["loss", "logits", "weights"])


class Returns(nn.Module):
    """A model that returns something of dropped units, of its answer and of a loss."""

    def __init__(self, form):
        super().__init__()
        self.layer, self.drop, self.form = nn.Linear(8, 1), nn.Dropout(0.5), form

    def forward(self, x):
        dropped = self.drop(x)
        return self.form(dropped, self.layer(dropped), dropped.sum())


SIDE = [
    lambda side, answer, loss: (answer, side),
    lambda side, answer, loss: (loss, answer, (side, side)),
    lambda side, answer, loss: {"hidden_states": side, "out": answer},
    lambda side, answer, loss: OrderedDict(loss=loss, logits=answer, attentions=(side,)),
    lambda side, answer, loss: Output(answer, (side,), (side,)),
    lambda side, answer, loss: Named(loss, answer, side),
    lambda side, answer, loss: {"answer": answer, "attn": side},
]


@pytest.mark.parametrize("form", SIDE)
def test_the_answer_is_judged_and_nothing_beside_it(form):
    assert codes(Returns(form)) == ["PD403"]
    assert codes(Returns(lambda side, answer, loss: form(answer, side, loss))) == ["PD402"]


def test_outputs_without_an_answer_are_not_judged():
    for form in (
        lambda side, answer, loss: {"last_hidden_state": side, "pooler_output": None},
        lambda side, answer, loss: {"a": side, "b": side},
        lambda side, answer, loss: np.zeros(3),
        lambda side, answer, loss: (),
    ):
        assert codes(Returns(form)) == []
