"""Duplicates of models: whatever way a module is referred to, members run the duplicate's, and the user's stays."""

import functools
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import puredrop
from puredrop.inspection.duplicate import duplicate

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
GLOBAL = nn.Dropout(0.5)


class Referring(nn.Module):
    """A net that calls its dropout layer by a reference of some kind."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.last = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)
        self.call = {
            "attribute": lambda: None,
            "list": lambda: [self.drop],
            "dict": lambda: {"drop": self.drop},
            "tuple": lambda: ("drop", self.drop),
            "nested": lambda: [{"drop": (self.drop,)}],
            "method": lambda: self.drop.forward,
            "partial": lambda: functools.partial(self.drop),
            "partial of a method": lambda: functools.partial(nn.Dropout.forward, self.drop),
            "closure": lambda: (lambda drop: lambda x: drop(x))(self.drop),
            "closure of self": lambda: lambda x: self.drop(x),
            "weak": lambda: weakref.ref(self.drop),
        }[kind]()

    def forward(self, x):
        x, call = self.first(x), self.call
        while not callable(call) and call is not None:
            call = call["drop"] if isinstance(call, dict) else call[-1]
        if isinstance(call, weakref.ref):
            call = call()
        return self.last((call or self.drop)(x))


KINDS = ["attribute", "list", "dict", "tuple", "nested", "method", "partial", "partial of a method", "closure"]
KINDS += ["closure of self", "weak"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_members_reach_a_layer_by_every_reference(kind, training):
    expected = puredrop.DropoutEnsemble(Referring("attribute")).predict(X)
    model = Referring(kind).train(training)
    before = dict(vars(model))
    found = puredrop.DropoutEnsemble(model).predict(X)
    if kind != "partial of a method":  # runs torch's code on our layer: a function's site, with masks of its own
        torch.testing.assert_close(found.mean, expected.mean)
    assert found.variance.min() > 0
    assert vars(model).items() >= before.items()
    # A forward that is called itself passes by the hooks, so the call belongs to the module around it.
    assert puredrop.sites(model, X)[0].path == (":dropout0" if "method" in kind else "drop")


@pytest.mark.parametrize("training", [True, False])
def test_a_reference_that_no_copy_follows_is_refused(training):
    class Stray(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop = nn.Linear(8, 16), GLOBAL

        def forward(self, x):
            return GLOBAL(self.first(x))

    model = Stray().train(training)
    with pytest.raises(ValueError, match=r"model calls drop by a reference .* global; call it as an attribute"):
        puredrop.DropoutEnsemble(model).predict(X)
    notes = {site.path: site.note for site in puredrop.sites(model, X)}
    assert "such as a global" in notes["drop"]


def test_parameters_are_shared_and_all_else_is_copied():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    tied = nn.Sequential(model, model[0], model)
    tied.cache = []
    tied.register_forward_hook(lambda module, given, output: output)
    new = duplicate(tied)
    assert new[0] is new[2]
    assert new[1] is new[0][0]
    assert new[1].weight is model[0].weight
    assert new.cache is tied.cache  # what a forward writes there, its user finds
    new.train()(X)
    assert model[1].num_batches_tracked == 0
    assert new[0][1].num_batches_tracked == 2
    new.eval()
    assert all(module.training for module in tied.modules())
    new.register_forward_hook(lambda *_: None)
    new.extra = nn.Identity()
    assert len(tied._forward_hooks) == 1
    assert not hasattr(tied, "extra")
    with torch.no_grad():  # as with FSDP, a parameter that is exchanged is seen by both
        model[0].weight = nn.Parameter(torch.ones(8, 8))
    assert new[1].weight is model[0].weight


@pytest.mark.parametrize(
    "kind", ["weight norm", "spectral norm", "compiled", "compiled in place", "scripted", "recurrent"]
)
def test_modules_of_a_kind_of_their_own(kind):
    linear = nn.Linear(8, 8)
    model = {
        "weight norm": lambda: parametrizations.weight_norm(linear),
        "spectral norm": lambda: parametrizations.spectral_norm(linear),
        "compiled": lambda: torch.compile(linear, backend="eager"),
        "compiled in place": lambda: linear,
        "scripted": lambda: torch.jit.script(linear),
        "recurrent": lambda: nn.LSTM(8, 4, num_layers=2, dropout=0.5),
    }[kind]()
    if kind == "compiled in place":
        model.compile(backend="eager")
    whole = nn.Sequential(model, nn.Flatten(0, 0)) if kind != "recurrent" else model
    whole.eval()
    new = duplicate(whole)
    found, expected = new(X), whole(X)
    if kind == "recurrent":
        found, expected = found[0], expected[0]
    assert torch.equal(found, expected)
    new.train()
    assert not any(module.training for module in whole.modules())


def test_the_duplicate_of_a_pinned_model_is_not_pinned():
    model = puredrop.convert(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
    run = puredrop.reproducible(model, seed=1)
    masks = [model(X).detach() for _ in range(2)]
    run.step = 0
    model(X)
    new = duplicate(model)
    assert new[1].key is None
    assert not new._forward_pre_hooks
    new(X)
    assert torch.equal(model(X), masks[1])  # the other forward was not counted
