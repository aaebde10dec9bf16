"""What several forwards show: other draws, draws out of torch's sight, and a model left as it was."""

import random
import types
import warnings
from random import random as imported_by_name

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop import sites

NUMPYS = np.random.default_rng(3)
ROWS = torch.randn(16, 8)


class Net(nn.Module):
    """Two layers with a function of the module and the hidden units between them."""

    def __init__(self, between, **parts):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(8, 8), nn.Linear(8, 3), between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(8, 8), nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.layer(x))


class Stack(nn.Module):
    """Layers that are skipped at random in training mode."""

    def __init__(self, draw, layers=6):
        super().__init__()
        self.draw, self.layers = draw, nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or self.draw() > 0.5:
                x = layer(x)
        return x


class Heads(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.heads = kind({"a": nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3)), "b": nn.Sequential(nn.Dropout(0.3))})
        self.drop_a, self.drop_b = nn.Dropout(0.4), nn.Dropout(0.4)

    def forward(self, x, task="a"):
        x = self.drop_a(x) if task == "a" else self.drop_b(x)
        return self.heads[task](x)


class Routed(nn.Module):
    """A mixture of experts: most do not run on a few rows."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(8, 40), nn.ModuleList(Block() for _ in range(40))

    def forward(self, x):
        chosen = self.router(x).argmax(1)
        return torch.stack([self.experts[int(i)](row) for i, row in zip(chosen, x, strict=True)])


@pytest.mark.parametrize("draw", [lambda: float(torch.rand([])), random.random, lambda: NUMPYS.random()])
def test_a_layer_that_this_forward_skipped_is_reached_under_other_draws(draw):
    model = Stack(draw)
    listed = []
    for seed in range(3):
        torch.manual_seed(seed)
        random.seed(seed)
        listed.append(str(sites(model, ROWS)))
        assert puredrop.check(model, ROWS).ok
    assert listed[0] == listed[1] == listed[2]
    found = {site.path: site for site in sites(model, ROWS)}
    assert all(found[f"layers.{i}.drop"].is_reached for i in range(6))


class LayerDropList(nn.ModuleList):
    def __init__(self, p):
        super().__init__(Block() for _ in range(3))
        self.p = p

    def __iter__(self):
        for layer in super().__iter__():
            if not self.dropping or float(torch.rand([])) > self.p:
                yield layer


def chained(m, h):
    m.layers.dropping = m.training
    for layer in m.layers:
        h = layer(h)
    return h


def test_a_list_that_drops_as_it_is_iterated_is_no_module_to_call():
    model = Net(chained, layers=LayerDropList(0.5))
    assert puredrop.check(model, ROWS).ok
    notes = {site.path: site.note for site in sites(model, ROWS)}
    assert notes["layers"] == "has no forward to call"
    assert notes["layers.0.drop"] == notes["layers.2.drop"] == ""


def test_modules_whose_holder_did_not_run_are_no_mistakes():
    for model in (Heads(nn.ModuleDict), Routed()):
        assert puredrop.check(model, ROWS[:4]).ok, str(puredrop.check(model, ROWS[:4]))
    notes = {site.path: site.note for site in sites(Heads(nn.ModuleDict), ROWS)}
    assert notes["heads.a.0"] == notes["drop_a"] == ""
    assert notes["heads.b.0"].startswith("not reached in ")
    assert notes["drop_b"].startswith("not reached in ")  # the code names it
    assert sum(not site.is_reached for site in sites(Routed(), ROWS[:4])) >= 36


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(8, 3), nn.Dropout(0.1)

    def forward(self, x):
        return self.layer(self.drop(x))


class Overrides(Base):
    def forward(self, x):
        return self.layer(x)


class Extends(Base):
    def forward(self, x, twice=False):
        return super().forward(super().forward(x)) if twice else self.layer(x)


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList(nn.Dropout(0.1) for _ in range(3))

    def forward(self, x):
        return self.drops[1](self.drops[0](x)) @ torch.ones(8, 3)


def test_the_rest_of_a_chain_that_is_run_in_part_is_no_mistake():
    model = Net(lambda m, h: m.chain[:2](h), chain=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1)))
    assert puredrop.check(model, ROWS).ok


def test_what_no_code_calls_is_still_a_mistake():
    for model, path in (
        (Net(lambda m, h: h, drop=nn.Dropout(0.1)), "drop"),
        (Overrides(), "drop"),
        (InAList(), "drops.2"),
    ):
        assert [(f.code, f.place) for f in puredrop.check(model, ROWS) if f.code == "PD201"] == [("PD201", path)]
    assert puredrop.check(Extends(), ROWS).ok


def test_a_model_that_runs_all_it_has_runs_no_more_than_it_must():
    counted = []
    model = Net(lambda m, h: counted.append(m.training) or m.drop(h), drop=nn.Dropout(0.1))
    sites(model, ROWS)
    assert counted == [True, False]
    counted.clear()
    puredrop.check(model, ROWS)
    assert counted == [True, False, True]


def test_every_rank_runs_the_same_number_of_forwards(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    counted = []
    model = Net(lambda m, h: counted.append(m.training) or h, part=Block())
    puredrop.check(model, ROWS)
    assert counted == [True, False]


@pytest.mark.parametrize(
    ("draw", "path", "note"),
    [
        (lambda: random.random(), "1:python0", "draws by Python's random"),
        (lambda: imported_by_name(), "1:python0", "draws by Python's random"),
        (lambda: random.randint(0, 3), "1:python0", "draws by Python's random"),
        (lambda: float(np.random.rand()), "1:numpy0", "draws by NumPy's generator"),
        (lambda: float(NUMPYS.normal()), "1:numpy0", "draws by NumPy's generator"),
    ],
)
def test_draws_of_python_and_numpy_are_located(draw, path, note):
    for only in (False, True):
        model = nn.Sequential(nn.Linear(8, 8), Net(lambda m, h, only=only: h * draw() if m.training or not only else h))
        states = random.getstate(), np.random.get_state()[1].tolist(), NUMPYS.bit_generator.state
        assert [(s.path, s.kind, s.note, s.in_eval) for s in sites(model, ROWS)] == [(path, "draw", note, not only)]
        assert [f.code for f in puredrop.check(model, ROWS)] == ["PD103"] * (not only)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), NUMPYS.bit_generator.state)
    (site,) = sites(model, ROWS)
    name, _, line = site.where.rpartition(":")
    assert name.endswith("test_observation.py")
    assert 130 < int(line) < 200


class RandomDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x * (random.random() > self.p) if self.training else x


def test_a_draw_in_a_dropout_module_is_the_modules():
    (site,) = sites(Net(lambda m, h: m.drop(h), drop=RandomDropout()), ROWS)
    assert (site.path, site.p, site.in_eval, site.note) == ("drop", 0.5, False, "")


def test_draws_of_torchscript_are_said():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's of TorchScript
        part = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        scripted, traced = torch.jit.script(part), torch.jit.trace(part, ROWS, check_trace=False)
    for inner, in_eval in ((scripted, False), (traced, True)):
        model = nn.Sequential(nn.Linear(8, 8), inner)
        (site,) = sites(model, ROWS)
        assert (site.path, site.kind, site.in_eval) == ("1", "unseen", in_eval)
        assert "dropout p=0.5" in site.note
        assert [(f.code, f.place) for f in puredrop.check(model, ROWS)] == [("PD103", "1")] * in_eval
    assert [site.path for site in sites(traced, ROWS)] == [""]


@pytest.mark.parametrize("package", ["vision", "_geometric", "_x/nn"])
def test_a_folder_whose_name_begins_like_torchs_is_the_users(package):
    for root in (torch, puredrop):
        name = root.__file__.replace("/__init__.py", f"{package}/layers.py")
        names = {"F": F, "nn": nn}
        exec(compile("\n\nclass Layer(nn.Module):\n  def forward(s, x):\n    return F.dropout(x)", name, "exec"), names)
        (site,) = sites(names["Layer"](), ROWS)
        assert site.where.endswith("layers.py:5")
        assert site.in_eval


def changes(name):
    """Return a function that sets a rate to zero in eval mode, where `name` says."""

    def forward(m, h):
        rate = {"attribute": m.rate, "object": m.config.rate, "list": m.rates[0], "dict": m.names["rate"]}[name]
        if not m.training:
            m.rate = m.config.rate = m.rates[0] = m.names["rate"] = type(m).rate_of_class = 0.0
        return F.dropout(h, rate, m.training)

    return forward


@pytest.mark.parametrize("name", ["attribute", "object", "list", "dict"])
@pytest.mark.parametrize("function", [sites, puredrop.check])
def test_rates_are_left_as_they_were(name, function):
    kind = type("Rated", (Net,), {"rate_of_class": 0.25})
    parts = {"rate": 0.25, "config": types.SimpleNamespace(rate=0.25), "rates": [0.25], "names": {"rate": 0.25}}
    model = kind(changes(name), **parts)
    result = function(model, ROWS)
    now = (model.rate, model.config.rate, model.rates, model.names, kind.rate_of_class)
    assert now == (0.25, 0.25, [0.25], {"rate": 0.25}, 0.25)
    if function is puredrop.check:
        assert [(f.code, f.detail[:6]) for f in result] == [("PD204", "p=0.25")]
    else:
        assert [(site.p, site.note) for site in result] == [(0.25, "")]
