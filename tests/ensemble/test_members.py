"""Members: one function each, the same however they are run; the model is left as it was."""

import copy

import pytest
import torch
from torch import nn

import puredrop
from dropping import MODELS, ROWS, model_of
from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.inputs import Batch
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output
from puredrop.members.survey import survey


def engines(model, x, members=None):
    """The reference, and what runs many at once; and what is known of the model."""
    members = members or MemberMasks(0)
    batch = Batch((x,), {}, len(x), 0)
    seen = survey(model, batch, members, main_output)
    drive = InstrumentedModel(model, seen.plan, 0)
    one, many = (Engine(drive, members, main_output, seen.runs, is_batched) for is_batched in (False, True))
    return batch, one, many, seen


def run(engine, batch, numbers, first=0):
    with engine.opened():
        return engine.outputs(batch, numbers, first)


# Recurrent kernels have no rule for many members, and a value changed in place has room for one.
SLOW = {"recurrent", "in place"}


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_many_members_at_once_equal_one_by_one(name, is_shared):
    model, x = model_of(name)
    members = MemberMasks(3, is_shared, balanced=is_shared)
    batch, one, many, seen = engines(model, x, members)
    assert bool(seen.slow) == (name in SLOW), seen.slow
    expected = run(one, batch, [0, 5, 17, 40])
    assert expected.std(0).max() > 0.01
    if name not in SLOW:
        torch.testing.assert_close(run(many, batch, [0, 5, 17, 40]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SLOW])
def test_a_member_does_not_depend_on_its_company(name):
    model, x = model_of(name)
    batch, _, many, _ = engines(model, x)
    together = run(many, batch, range(20))
    torch.testing.assert_close(run(many, batch, [17]), together[17:18], rtol=1e-4, atol=1e-5)
    some = Batch((x[2:4],), {}, 2, 0)
    torch.testing.assert_close(run(many, some, [17])[0], together[17, 2:4], rtol=1e-4, atol=1e-5)


def test_everything_that_drops_is_a_part_of_members():
    for name in MODELS:
        model, x = model_of(name)
        assert puredrop.DropoutEnsemble(model).survey(x).skipped == {}, name


def test_weights_do_not_follow_rows():
    model, x = model_of("weights")
    batch, one, _, _ = engines(model, x, MemberMasks(0, is_shared=False, balanced=False))
    whole = run(one, batch, [3])
    torch.testing.assert_close(run(one, Batch((x[2:],), {}, 3, 0), [3], first=2)[0], whole[0, 2:])
    torch.testing.assert_close(run(one, Batch((x[2:],), {}, 3, 0), [3])[0], whole[0, 2:])


@pytest.mark.parametrize("name", ["mlp", "convolutions", "encoder", "other noise", "builtins"])
def test_rows_with_masks_of_their_own_do_not_depend_on_the_batch(name):
    model, x = model_of(name)
    batch, one, _, _ = engines(model, x, MemberMasks(0, is_shared=False, balanced=False))
    whole = run(one, batch, [3])
    assert not torch.allclose(run(one, Batch((x[2:],), {}, 3, 0), [3])[0], whole[0, 2:], atol=1e-3)
    torch.testing.assert_close(run(one, Batch((x[2:],), {}, 3, 0), [3], first=2)[0], whole[0, 2:])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("residual", "weights")])
def test_rows_share_a_members_masks(name):
    model, x = model_of(name)
    x = x[:1].expand_as(x).contiguous()
    batch, one, _, _ = engines(model, x)
    outputs = run(one, batch, range(6))
    torch.testing.assert_close(outputs, outputs[:, :1].expand_as(outputs), rtol=1e-4, atol=1e-5)
    _, alone, _, _ = engines(model, x, MemberMasks(0, is_shared=False, balanced=False))
    assert run(alone, batch, range(6)).std(1).max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_it_was(name):
    model, x = model_of(name)
    next(model.modules()).register_buffer("counter", torch.zeros(()))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    kinds = [(path, type(module), set(vars(module))) for path, module in model.named_modules()]
    wrong = torch.randn(2, 99)
    generator = torch.get_rng_state()
    ensemble = puredrop.DropoutEnsemble(model)
    ensemble.predict(x, members=3)
    with pytest.raises((RuntimeError, AssertionError)):  # the latter of attention, as torch has it
        ensemble.predict(wrong, members=3)
    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert kinds == [(path, type(module), set(vars(module))) for path, module in model.named_modules()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_members_are_the_contracts_masks():
    """A member by hand: the key of the contract's chain with "ensemble" in place of the step, and plain dropout."""
    model, x = model_of("mlp")
    batch, one, _, _ = engines(model, x, MemberMasks(9, balanced=False))
    key = {path: puredrop.Key(9).fold_in("").fold_in(path).fold_in("ensemble").fold_in(0) for path in ("2", "5")}
    h = puredrop.functional.dropout(torch.relu(model[0](x)), 0.5, key=key["2"].fold_in(4), shared_dims=(0,))
    h = puredrop.functional.dropout(nn.functional.gelu(model[3](h)), 0.3, key=key["5"].fold_in(4), shared_dims=(0,))
    torch.testing.assert_close(run(one, batch, [4])[0], model[6](h))


def test_what_no_decision_reaches_is_done_once():
    model, x = model_of("convolutions")
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    ensemble = puredrop.DropoutEnsemble(model).survey(x)
    calls.clear()
    ensemble.predict(x, members=64)
    assert len(calls) == 1


@pytest.mark.parametrize(("seed", "other"), [(0, 1), (1, 2**64 - 1)])
def test_seeds_are_other_ensembles(seed, other):
    model, x = model_of("mlp")
    a, b = (puredrop.DropoutEnsemble(model, seed=one).predict(x, members=2).mean for one in (seed, other))
    assert not torch.allclose(a, b, atol=1e-4)


class Both(nn.Module):
    """Our layer, a function that drops in training mode only, and BatchNorm as a function beside it."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 16), puredrop.nn.Dropout(0.3), nn.Linear(16, 3)
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("var", torch.rand(16) + 0.5)

    def forward(self, x):
        h = nn.functional.batch_norm(self.first(x), self.mean, self.var, training=self.training)
        h = self.drop(torch.relu(h))
        return self.last(nn.functional.dropout(h, 0.4) if self.training else h)


def test_a_model_that_is_pinned_has_the_same_members_in_functions_too():
    model, x = Both(), torch.randn(5, 6)
    model(x)
    expected = puredrop.DropoutEnsemble(model).predict(x, members=4)
    assert {use.path for use in puredrop.DropoutEnsemble(model).survey(x)._survey.uses} == {"drop", ":dropout0"}
    with puredrop.reproducible(model, seed=5) as run:
        found = puredrop.DropoutEnsemble(model).predict(x, members=4)
        assert torch.equal(found.mean, expected.mean)
        after = model(x)
        run.step = 0
        assert torch.equal(model(x), after), "nothing was counted meanwhile"


def test_batch_norm_as_a_function_takes_no_statistics_of_the_batch():
    model, x = Both(), torch.randn(5, 6)
    ensemble = puredrop.DropoutEnsemble(model)
    whole = ensemble.predict(x, members=4).mean
    torch.testing.assert_close(ensemble.predict(x[:2], members=4).mean, whole[:2], rtol=1e-5, atol=1e-6)


def test_pinned_and_batchwise_models_and_layers_with_keys_have_the_same_members():
    model, x = model_of("mlp")
    expected = puredrop.DropoutEnsemble(model).predict(x, members=4).mean
    with puredrop.reproducible(model) as _:
        assert torch.equal(puredrop.DropoutEnsemble(model).predict(x, members=4).mean, expected)
        model(x)
    puredrop.batchwise(model, groups=2)
    torch.testing.assert_close(puredrop.DropoutEnsemble(model).predict(x, members=4).mean, expected)
    puredrop.revert(model)
    puredrop.convert(model)
    model[2].set_key(puredrop.Key(7))
    assert torch.equal(puredrop.DropoutEnsemble(model).predict(x, members=4).mean, expected)
    assert model[2].key == puredrop.Key(7)
    assert model[2].training
    assert len(x) == ROWS
