"""What is not pinned is named once, or refused; the report lists it."""

import copy
import random
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import MLP, Net, masks, same
from torch import nn
from torch.utils.checkpoint import checkpoint

import puredrop
from puredrop import UnpinnedWarning
from puredrop.inspection.state import generators_restored
from puredrop.inspection.watch import positions
from puredrop.pinning import _draws


class Layers(nn.Module):
    """Layers, of which some are skipped by hand."""

    def __init__(self, draw):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.drop = nn.Dropout(0.1)
        self.draw = draw

    def forward(self, x):
        for layer in self.layers:
            if self.training and self.draw() < 0.5:
                continue
            x = self.drop(layer(x))
        return x


class Noise(nn.Module):
    """Noise that is no dropout, in training mode alone."""

    def __init__(self, draw):
        super().__init__()
        self.drop = puredrop.nn.Dropout(0.5)
        self.inner = nn.Module()
        self.inner.forward = lambda x: draw(x) if self.training else x

    def forward(self, x):
        return self.drop(self.inner(x))


GENERATOR = torch.Generator().manual_seed(3)
DRAWS = {
    "python": (lambda: Layers(random.random), "python"),
    "numpy": (lambda: Layers(np.random.rand), "numpy"),
    "rand": (lambda: Layers(lambda: torch.rand([])), "draw"),
    "noise": (lambda: Noise(lambda x: x + torch.randn_like(x)), "draw"),
    "in place": (lambda: Noise(lambda x: x * torch.empty_like(x).bernoulli_(0.5)), "draw"),
    "own generator": (lambda: Noise(lambda x: x + torch.rand(8, generator=GENERATOR)), "draw"),
    "gumbel": (lambda: Noise(F.gumbel_softmax), "draw"),
    "rrelu": (lambda: Noise(lambda x: F.rrelu(x, training=True)), "draw"),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_named_once_with_their_place(name):
    make, kind = DRAWS[name]
    model, x = make(), torch.randn(4, 8)
    run = puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match=r"not pinned:\n- .*test_unpinned.py:\d+\): .*draw") as caught:
        model(x)
    assert len(caught) == 1
    model(x)  # warnings are errors here
    run.advance()
    model(x)
    (place, *others) = run.report.unpinned
    assert not others or name == "numpy"
    assert place.kind == kind
    assert place.where.startswith("tests/pinning/test_unpinned.py:")
    assert "NO" in str(run.report)


def test_the_module_around_a_draw_is_named():
    class Path(nn.Module):
        def forward(self, x):
            return x * torch.rand(len(x), 1).gt(0.5)

    model = nn.Sequential(nn.Linear(8, 8), Path(), nn.Dropout(0.5))
    run = puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match=r"- 1 \("):
        model(torch.randn(4, 8))
    assert [(place.path, place.kind) for place in run.report.unpinned] == [("1", "draw")]


class DropPath(nn.Module):
    """A layer as libraries have it, which `convert` knows by its name."""

    __module__ = "timm.layers.drop"

    def __init__(self, rate):
        super().__init__()
        self.drop_prob = rate

    def forward(self, x):
        return x * x.new_empty(len(x), 1).bernoulli_(1 - self.drop_prob) if self.training and self.drop_prob else x


def test_layers_of_libraries_are_named_with_the_way_to_pin_them():
    model = nn.Sequential(nn.Linear(8, 8), DropPath(0.5), DropPath(0.0))
    run = puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match=r"- 1 .*drop_path of timm.layers.drop .*convert\(model\) first"):
        model(torch.randn(4, 8))
    (place,) = run.report.unpinned
    assert (place.path, place.kind) == ("1", "layer")
    run.release()
    run = puredrop.reproducible(puredrop.convert(model))
    model(torch.randn(4, 8))
    assert not run.report.unpinned


def test_a_library_layer_that_a_forward_missed():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.path, self.drop = DropPath(0.5), nn.Dropout(0.5)

        def forward(self, x, deep=False):
            return self.drop(self.path(x) if deep else x)

    model = Sometimes()
    puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match=r"- path: drop_path of timm.*convert"):
        model(torch.randn(4, 8))


def test_nested_models_name_what_is_theirs():
    inner, x = Layers(lambda: 1 + random.random()), torch.randn(4, 8)
    outer = nn.Sequential(inner, puredrop.nn.Dropout(0.5))
    runs = [puredrop.reproducible(inner), puredrop.reproducible(outer)]
    with pytest.warns(UnpinnedWarning) as caught:
        outer(x)
    assert len(caught) == 2
    assert [run.report.unpinned[0].kind for run in runs] == ["python", "python"]
    assert {site.samples for run in runs for site in run.report.sites} == {"shown"}


def test_nothing_is_named_where_all_is_pinned():
    for kind, shape in ((MLP, (16,)), (Net, (5, 16))):
        model, x = kind(), torch.randn(4, *shape)
        run = puredrop.reproducible(model, strict=True)
        model(x)
        report = run.report
        assert not report.unpinned
        assert {site.samples for site in report.sites} == {"shown"}
        assert not report.note


def test_draws_in_eval_mode_are_not_named():
    model, x = Noise(lambda x: x + torch.randn_like(x)), torch.randn(4, 8)
    run = puredrop.reproducible(model)
    model.eval()(x)
    model.inner.forward = lambda x: x
    model.train()(x)
    assert not run.report.unpinned


def test_strict_refuses_what_is_not_pinned():
    model, x = Layers(random.random), torch.randn(4, 8)
    puredrop.reproducible(model, strict=True)
    for _ in range(2):
        with pytest.raises(
            RuntimeError,
            match=r"strict=True\): not pinned: \(model\) \(tests/pinning/test_unpinned.py:\d+\): .*LayerDrop",
        ):
            model(x)


def test_masks_are_those_of_a_model_that_is_not_watched():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 5, 16)
    run = puredrop.reproducible(model, seed=2)
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    watched = masks(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)
    run.step = 0
    assert same(masks(model, x), watched)


def test_a_forward_that_fails_is_examined_again():
    model, x = Layers(lambda: 1 + random.random()), torch.randn(4, 8)
    puredrop.reproducible(model)
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.randn(4, 7))
    with pytest.warns(UnpinnedWarning):
        model(x)


def test_a_forward_by_hand_is_examined():
    model, x = Layers(random.random), torch.randn(4, 8)
    run = puredrop.reproducible(model)

    def twice():
        with run.forward():
            model(x)
            model(x)

    with pytest.warns(UnpinnedWarning):
        twice()
    assert len(run.report.unpinned) == 1


def test_copies_are_examined_once():
    model, x = Layers(random.random), torch.randn(4, 8)
    early = copy.deepcopy(model)
    puredrop.reproducible(model)
    early = copy.deepcopy(model)
    with pytest.warns(UnpinnedWarning):
        model(x)
    late = copy.deepcopy(model)
    late(x)
    with pytest.warns(UnpinnedWarning):
        early(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_is_searched_on_a_copy():
    torch._dynamo.reset()
    model, x = Noise(lambda x: x + torch.randn_like(x)), torch.randn(4, 8)
    run = puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match="randn_like|normal"):
        torch.compile(model, backend="eager")(x)
    assert run.report.unpinned

    class Branch(MLP):
        def forward(self, x):
            return super().forward(x) * float(x.sum() < 1e9)

    model = Branch()
    run = puredrop.reproducible(model)
    torch.compile(model, backend="eager")(torch.randn(4, 16))
    assert "compiled code hides draws" in run.report.note
    model = Branch()
    puredrop.reproducible(model, strict=True)
    with pytest.raises(RuntimeError, match=r"call the model once before torch\.compile"):
        torch.compile(model, backend="eager")(torch.randn(4, 16))


def test_recomputation_of_ones_own_is_named():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, module):
            return module(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    class Region(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

        def forward(self, x):
            return Own.apply(x, self.block)

    model = Region()
    run = puredrop.reproducible(model)
    with pytest.warns(UnpinnedWarning, match=r"block.1 \(.*dropout runs in Own, an autograd Function"):
        model(torch.randn(4, 8, requires_grad=True))
    assert [place.kind for place in run.report.unpinned] == ["recomputation"]


def test_checkpoints_that_forget_the_generators_are_named():
    class Region(nn.Module):
        def __init__(self, preserves):
            super().__init__()
            self.preserves, self.drop = preserves, nn.Dropout(0.5)

        def forward(self, x):
            options = {"use_reentrant": False, "preserve_rng_state": self.preserves}
            return checkpoint(lambda x: self.drop(x) + torch.randn_like(x), x, **options)

    for preserves in (True, False):
        model = Region(preserves)
        run = puredrop.reproducible(model)
        with pytest.warns(UnpinnedWarning):
            model(torch.randn(4, 8, requires_grad=True))
        (place,) = run.report.unpinned
        assert ("preserve_rng_state=False" in place.reason) is not preserves


def test_the_report_goes_to_other_programs():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    run = puredrop.reproducible(model)
    assert run.report.note == "no forward in training mode has been examined yet"
    assert [site.samples for site in run.report.sites] == []
    model(torch.randn(4, 8))
    expected = {
        "path": "1",
        "kind": "dropout",
        "shape": [4, 8],
        "sample_dim": 0,
        "samples": "shown",
        "reason": "dimension 0, through rowwise layers alone",
    }
    assert run.report.to_dict() == {"sites": [expected], "unpinned": [], "note": ""}
    assert run.report.frame()["pinned"].tolist() == [True]
    assert str(run.report).splitlines()[0].split() == ["path", "kind", "pinned", "shape", "samples", "reason"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, run = Layers(random.random), None
        run = puredrop.reproducible(model)
        model(torch.randn(4, 8))
    assert run.report.frame()["where"].notna().tolist() == [False, True]


def test_a_restoration_that_ends_while_the_watch_reads_is_no_draw(monkeypatch):
    """The watch counted restorations after it had read the generators, so one between the two looked like a draw."""
    drawn, may_end, added = threading.Event(), threading.Event(), []

    def survey():
        with generators_restored():
            torch.rand(3), random.random(), np.random.rand()
            drawn.set()
            may_end.wait(30)

    def read():
        found = positions()
        may_end.set()
        other.join()
        return found

    other = threading.Thread(target=survey)
    other.start()
    assert drawn.wait(30)
    monkeypatch.setattr(_draws, "positions", read)
    with _draws.DrawWatch(nn.Linear(3, 3), lambda: "", lambda *draw: added.append(draw)):
        torch.relu(torch.ones(3))
    assert added == []
    with _draws.DrawWatch(nn.Linear(3, 3), lambda: "", lambda *draw: added.append(draw)):
        torch.rand(3)
    assert [name for *_, name in added] == ["rand"]
