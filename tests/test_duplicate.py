"""Duplicates of models: whatever way a module is referred to, members run the duplicate's, and the user's stays."""

import copy
import functools
import warnings
import weakref
from collections import deque

import pytest
import torch
from torch import distributed, nn
from torch.nn.utils import parametrizations

import puredrop
from puredrop.inspection.duplicate import duplicate

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
GLOBAL = {"drop": nn.Dropout(0.5), "norm": nn.BatchNorm1d(16)}


class Holder:
    def __init__(self, drop):
        self.drop = drop

    def __call__(self, x):
        return self.drop(x)


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
            "object": lambda: Holder(self.drop),
            "default": lambda: lambda x, drop=self.drop: drop(x),
            "deque": lambda: deque([self.drop], maxlen=1),
            "key": lambda: {self.drop: "drop"},
        }[kind]()

    def forward(self, x):
        x, call = self.first(x), self.call
        while not callable(call) and call is not None:
            call = call.get("drop") or next(iter(call)) if isinstance(call, dict) else call[-1]
        if isinstance(call, weakref.ref):
            call = call()
        return self.last((call or self.drop)(x))


KINDS = ["attribute", "list", "dict", "tuple", "nested", "method", "partial", "partial of a method", "closure"]
KINDS += ["closure of self", "weak", "object", "default", "deque", "key"]


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
@pytest.mark.parametrize("kind", ["drop", "norm"])
def test_a_reference_that_no_copy_follows_is_refused_before_it_runs(kind, training):
    class Stray(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.norm = nn.Linear(8, 16), GLOBAL["drop"], GLOBAL["norm"]

        def forward(self, x):
            return self.drop(GLOBAL[kind](self.first(x)))

    model = Stray().train(training)
    before = copy.deepcopy(model.state_dict())
    ensemble = puredrop.DropoutEnsemble(model)
    for call in (ensemble.predict, ensemble.weight_scaling, lambda x: puredrop.sites(model, x)):
        with pytest.raises(ValueError, match=rf"model calls {kind} by a reference .* global; call it as an attribute"):
            call(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tensors_that_share_memory_share_it_in_the_duplicate():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.randn(2, 8))
            self.register_buffer("whole", self.cache.view(-1))
            self.first = self.cache[0]

        def forward(self, x):
            self.first.copy_(x.mean(0))
            return x + self.cache[0] + self.whole[:8]

    model = Cached()
    before = model.cache.clone()
    new = duplicate(model)
    torch.testing.assert_close(new(X), X + 2 * X.mean(0))
    assert torch.equal(model.cache, before)
    assert torch.equal(model.first, before[0])


class Made(nn.Linear):
    __slots__ = ("kept",)

    def __new__(cls, inputs, outputs):
        return super().__new__(cls)


def test_classes_that_are_made_in_a_way_of_their_own():
    model = Made(8, 8)
    model.kept = "in a slot"
    new = duplicate(nn.Sequential(model))[0]
    assert new.kept == "in a slot"
    assert torch.equal(new(X), model(X))


def test_many_modules_and_deep_ones():
    many = nn.ModuleList([nn.Identity() for _ in range(10_001)])
    assert not {*many} & {*duplicate(many)}
    deep = nn.Identity()
    for _ in range(400):
        deep = nn.Sequential(deep)
    assert duplicate(deep)[0] is not deep[0]


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 runs fully_shard on GPUs only, for want of this"
)
def test_parameters_that_fsdp_exchanges_are_seen():
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    expected = puredrop.DropoutEnsemble(copy.deepcopy(model)).predict(X).mean
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        torch.testing.assert_close(puredrop.DropoutEnsemble(model).predict(X).mean, expected)
    finally:
        distributed.destroy_process_group()


def test_old_weight_norm_of_a_recurrent_net_keeps_its_gradient():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.utils.weight_norm(nn.LSTM(8, 4), "weight_hh_l0")
    model(X)
    with torch.no_grad():
        duplicate(model)(X)
    assert all(weight.requires_grad for weight in model._flat_weights)


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


def test_one_pass_after_a_survey_puts_nothing_on_the_model():
    hooks = []

    class Looking(nn.Linear):
        def forward(self, x):
            hooks.append(len(model[0]._forward_pre_hooks))
            return super().forward(x)

    model = nn.Sequential(Looking(8, 16), nn.Dropout(), nn.Linear(16, 3))
    ensemble = puredrop.DropoutEnsemble(model)
    ensemble.weight_scaling(X)
    assert hooks.pop() == 1  # refuses calls of the user's modules, in this thread alone
    ensemble.survey(X)
    hooks.clear()
    ensemble.weight_scaling(X)
    ensemble.predict(X, members=2)
    assert set(hooks) == {0}
