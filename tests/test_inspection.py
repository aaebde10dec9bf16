import json
import random
import warnings
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout as imported_by_name

import puredrop
from puredrop import Site, sites

HERE = f"{Path('tests') / Path(__file__).name}" if Path.cwd() == Path(__file__).parents[1] else Path(__file__).name


def line(mark):
    lines = Path(__file__).read_text().splitlines()
    return next(f"{HERE}:{i}" for i, text in enumerate(lines, 1) if text.endswith(f"# {mark}"))


class ByHand(nn.Module):
    def forward(self, x):
        return x * x.new_empty(len(x), 1, 1).bernoulli_(0.8)  # by hand


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.2, batch_first=True)
        self.hand, self.norm = ByHand(), nn.BatchNorm1d(5)
        self.never = nn.Dropout(0.4)
        self.ours, self.path, self.zero = puredrop.nn.Dropout(0.25), puredrop.nn.DropPath(0.2), nn.Dropout(0.0)

    def forward(self, x):
        x = self.norm(self.hand(self.lstm(self.encoder(x))[0]))
        x = F.dropout(x, 0.5)  # always on
        x = imported_by_name(x, 0.3, self.training)  # by name
        x = self.path(self.ours(self.ours(x)))
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)  # attention
        x = puredrop.functional.dropout(x, 0.15, self.training)  # ours
        return self.zero(x)


def found(model, *args, **kwargs):
    return {site.path: site for site in sites(model, *args, **kwargs)}


def test_every_place_of_a_forward():
    net, x = Net(), torch.randn(3, 5, 8)
    seen = found(net, x)
    expected = {
        "encoder.self_attn": ("attention", 0.1, 1, False),
        "encoder.dropout1": ("dropout", 0.1, 1, False),
        "encoder.dropout": ("dropout", 0.1, 1, False),
        "encoder.dropout2": ("dropout", 0.1, 1, False),
        "lstm": ("recurrent", 0.2, 1, False),
        "hand:draw0": ("draw", pytest.approx(0.2), 1, True),
        ":dropout0": ("dropout", 0.5, 1, True),
        ":dropout1": ("dropout", 0.3, 1, False),
        "ours": ("dropout", 0.25, 2, False),
        "path": ("drop_path", 0.2, 1, False),
        ":attention0": ("attention", 0.1, 1, True),
        ":dropout2": ("dropout", 0.15, 1, False),
        "zero": ("dropout", 0.0, 1, False),
        "never": ("dropout", 0.4, 0, None),
    }
    assert list(expected.items()) == [(p, (s.kind, s.p, s.uses, s.in_eval)) for p, s in seen.items()]
    marks = {":dropout0": "always on", ":dropout1": "by name", ":attention0": "attention", ":dropout2": "ours"}
    assert {path: seen[path].where for path in marks} == {path: line(mark) for path, mark in marks.items()}
    assert seen["hand:draw0"].where == line("by hand")
    assert seen["encoder.dropout"].shape == (3, 5, 16)
    assert seen["never"].note == "never called"
    assert not seen["never"].is_reached


def test_nothing_is_changed():
    net, x = Net(), torch.randn(3, 5, 8)
    net.encoder.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
    sites(net, x)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == hooks == 0


def test_a_forward_that_fails_shows_its_own_error_and_leaves_no_trace():
    net = Net().eval()
    with pytest.raises(AssertionError, match="was expecting embedding dimension of 8, but got 9"):
        sites(net, torch.randn(3, 5, 9))
    assert not net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_inputs_as_users_have_them():
    class Named(nn.Module):
        def forward(self, ids, mask=None):
            return F.dropout(ids * mask, 0.2, self.training)

    batch = {"ids": torch.ones(2, 3), "mask": torch.ones(2, 3)}
    for call in ({"kwargs": batch}, {"args": (batch,)}, {"args": (UserDict(batch),)}, {"args": tuple(batch.values())}):
        assert list(found(Named(), *call.get("args", ()), **call.get("kwargs", {}))) == [":dropout0"]

    class OfDict(nn.Module):
        def forward(self, batch):
            return F.dropout(batch["ids"], 0.2, self.training)

    assert list(found(OfDict(), batch)) == [":dropout0"]


def test_what_is_compiled_runs_uncompiled():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    assert list(found(torch.compile(net), torch.ones(2, 4))) == ["1"]

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.run = torch.compile(lambda x: F.dropout(x, 0.5))

        def forward(self, x):
            return self.run(x)

    assert list(found(Inner(), torch.ones(2, 4))) == [":dropout0"]


def test_what_cannot_be_seen_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's of TorchScript
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    seen = found(nn.Sequential(nn.Linear(4, 4), scripted), torch.ones(2, 4))
    assert seen["1"].kind == "unseen"
    assert "TorchScript" in seen["1"].note


def test_a_functional_site_is_numbered_within_one_run_of_its_module():
    class Block(nn.Module):
        def forward(self, x):
            return F.dropout(F.dropout(x, 0.1, self.training), 0.2, self.training)

    block = Block()
    seen = found(nn.Sequential(block, block), torch.ones(2, 4))
    assert {path: site.uses for path, site in seen.items()} == {"0:dropout0": 2, "0:dropout1": 2}


def test_a_call_is_known_again_in_eval_where_others_are_left_out():
    class Guarded(nn.Module):
        def forward(self, x):
            if self.training:
                x = F.dropout(x, 0.1)
            x = puredrop.functional.dropout(x, 0.2, self.training)
            return F.dropout(F.dropout(x, 0.3, self.training), 0.4)

    seen = found(Guarded(), torch.ones(2, 4))
    assert [(s.p, s.in_eval) for s in seen.values()] == [(0.1, False), (0.2, False), (0.3, False), (0.4, True)]
    assert [f.detail[:5] for f in puredrop.check(Guarded(), torch.ones(2, 4)) if f.code == "PD101"] == ["p=0.4"]

    class OnlyInEval(nn.Module):
        def forward(self, x):
            return x if self.training else F.dropout(x, 0.1)

    (only,) = sites(OnlyInEval(), torch.ones(2, 4))
    assert (only.path, only.in_eval, only.uses, only.note) == (":dropout0 (eval)", True, 0, "in eval mode only")


def test_a_buffer_that_a_forward_replaces_is_put_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x

    model = Counts()
    before = model.calls
    sites(model, torch.ones(1))
    assert model.calls is before
    assert before == 0


def test_a_module_that_lends_its_rate():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.2)

        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout.p * self.training)

    seen = found(nn.Sequential(Attention()), torch.randn(1, 2, 3))
    assert seen["0.dropout"].note == "never called, but 0:attention0 has its rate"
    assert puredrop.check(nn.Sequential(Attention(), nn.Linear(3, 3)), torch.randn(1, 2, 3)).ok


def test_no_dropout_and_bad_input():
    assert str(sites(nn.Linear(2, 2), torch.ones(1, 2))).startswith("no dropout")
    with pytest.raises(TypeError, match=r"model is function; expected a torch\.nn\.Module"):
        sites(test_inputs_as_users_have_them)


def test_the_table():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    table = sites(net, torch.ones(1, 2))
    assert repr(table) == str(table)
    assert str(table).splitlines() == [
        "path  kind     p    shape  uses  in eval  where",
        "1     dropout  0.3  1x2    1     off      torch.nn.Dropout",
    ]
    assert table[0] == Site("1", "dropout", 0.3, (1, 2), "torch.nn.Dropout", 1, False)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x, z):
        return self.drop(x + z)


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(2, 4),),
        ([torch.ones(2, 4), torch.zeros(2)],),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4), torch.zeros(4)), 2),),
        ({"input": torch.ones(2, 4), "labels": torch.zeros(2)},),
    ],
)
def test_inputs_are_given_in_any_form(inputs):
    before = torch.get_rng_state()
    (site,) = puredrop.sites(nn.Sequential(nn.Dropout(0.5)), *inputs)
    assert site.shape == (2, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("inputs", [((torch.ones(2, 4), torch.ones(2, 4)),), ({"x": torch.ones(2, 4), "z": 1},)])
def test_several_inputs_are_given_as_one(inputs):
    assert [site.shape for site in puredrop.sites(Two(), *inputs)] == [(2, 4)]


def test_without_inputs_the_error_says_what_the_forward_needs():
    with pytest.raises(TypeError, match=r"no inputs.*forward\(x, z\).*sites\(model, x\)"):
        puredrop.sites(Two())
    with pytest.raises(ValueError, match="DataLoader has no batches"):
        puredrop.sites(Two(), torch.utils.data.DataLoader([]))


def test_a_forward_that_takes_a_list_is_given_the_list():
    class Lists(nn.Module):
        def forward(self, images: list[torch.Tensor], targets=None):
            return nn.functional.dropout(torch.stack(images), 0.5, self.training)

    assert [site.shape for site in puredrop.sites(Lists(), [torch.ones(3), torch.ones(3)])] == [(2, 3)]


def test_sites_for_other_programs():
    found = puredrop.sites(nn.Dropout(0.5), torch.ones(2, 4))
    (row,) = found.to_dict()["sites"]
    assert row == found[0].to_dict()
    assert (row["shape"], row["p"]) == ([2, 4], 0.5)
    assert json.loads(found.to_json()) == found.to_dict()
    assert list(found.frame().columns) == list(row)
