"""The run itself: steps, optimizers, states, and what it refuses."""

import json

import pytest
import torch
from nets import MLP, Net, masks, same
from torch import nn

import puredrop

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_the_optimizer_advances_the_step():
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = puredrop.reproducible(model).attach(optimizer)
    for step in range(3):
        assert run.step == step
        model(X).sum().backward()
        optimizer.step()
    run.release()
    optimizer.step()
    assert run.step == 3
    run = puredrop.reproducible(model).attach(optimizer)
    with pytest.raises(ValueError, match="an optimizer is attached already"):
        run.attach(optimizer)


def test_a_step_skipped_by_a_scaler_is_none():
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = puredrop.reproducible(model).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for scale, step in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        (scaler.scale(model(X).sum()) * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        assert run.step == step


def test_a_state_is_json_and_goes_on_in_the_middle_of_a_step():
    model = Net()
    x = torch.randn(6, 5, 16)
    run = puredrop.reproducible(model, seed=2**63 + 5, name="a")
    run.step = 2**40
    model(x[:4])
    state = json.loads(json.dumps(run.state_dict()))
    later = masks(model, x[4:])
    other = Net()
    other_run = puredrop.reproducible(other, seed=2**63 + 5, name="a")
    other_run.load_state_dict(state)
    assert other_run.step == 2**40
    assert same(masks(other, x[4:]), later)
    assert repr(other_run) == f"Run(seed={2**63 + 5}, name='a', step={2**40})"


@pytest.mark.parametrize("stop", range(1, 8))
def test_restarted_at_any_step_the_weights_are_the_same(stop):
    def steps(model, optimizer, run, until):
        while run.step < until:
            x = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(run.step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    def start():
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, puredrop.reproducible(model, seed=9).attach(optimizer)

    whole, stopped, resumed = start(), start(), start()
    steps(*whole, 8)
    steps(*stopped, stop)
    resumed[0].load_state_dict(stopped[0].state_dict())
    resumed[2].load_state_dict(json.loads(json.dumps(stopped[2].state_dict())))
    torch.rand(stop)
    steps(*resumed, 8)
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1}, "load_state_dict: seed is 1, this run's is 0; the masks would not continue as they were"),
        ({"name": "b"}, "load_state_dict: name is 'b', this run's is ''"),
        ({"format": 9}, "load_state_dict: format is 9, this run's is 1"),
    ],
)
def test_states_of_other_masks(change, match):
    run = puredrop.reproducible(MLP())
    with pytest.raises(ValueError, match=match):
        run.load_state_dict({**run.state_dict(), **change})


@pytest.mark.parametrize("change", [{"step": ...}, {"tally": ...}, {"tally": 3}, {"tally": [1, 2, 3, 4]}])
def test_states_that_are_not_whole(change):
    run = puredrop.reproducible(MLP())
    run.step = 5
    state = {name: value for name, value in {**run.state_dict(), **change}.items() if value is not ...}
    with pytest.raises(
        ValueError, match=r"load_state_dict: the state holds format.*expected what state_dict gave, whole"
    ):
        run.load_state_dict(state)
    with pytest.raises(TypeError, match="load_state_dict: state is str; expected what state_dict gave"):
        run.load_state_dict("state")
    assert run.step == 5


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.ones(2),), TypeError, "model is Tensor; expected a torch.nn.Module"),
        ((MLP(), "zero"), TypeError, "seed is 'zero'; expected an integer"),
        ((nn.DataParallel(MLP()),), ValueError, "model is a DataParallel.*use DistributedDataParallel"),
    ],
)
def test_arguments_that_are_none(arguments, error, match):
    with pytest.raises(error, match=match):
        puredrop.reproducible(*arguments)


def test_steps_that_are_none():
    run = puredrop.reproducible(MLP())
    with pytest.raises(TypeError, match=r"step is 1.5; expected an integer"):
        run.step = 1.5
    with pytest.raises(ValueError, match="step is -1; expected 0 or more"):
        run.step = -1


def test_a_model_is_pinned_once():
    model = MLP()
    run = puredrop.reproducible(model)
    with pytest.raises(ValueError, match="model is pinned already; release it first"):
        puredrop.reproducible(torch.compile(model, backend="eager"))
    run.release()
    puredrop.reproducible(model)


def test_parts_called_outside_of_a_forward():
    model = MLP()
    run = puredrop.reproducible(model)
    with pytest.raises(RuntimeError, match="site 'drop' was used outside of a forward of the pinned model"):
        model.drop(X)
    with run.forward():
        model.drop(X)
    model.eval()
    assert torch.equal(model.drop(X), X)


def test_a_forward_by_hand_is_one_forward():
    """Twice through the model in it: two uses of each site, of the same samples."""
    model = MLP()
    run = puredrop.reproducible(model)
    with run.forward():
        first, second = masks(model, X), masks(model, X)
    base = puredrop.Key(0).fold_in("").fold_in("drop").fold_in(0)
    assert torch.equal(first[0], puredrop.keep_mask((8, 32), 0.5, base.fold_in(0)))
    assert torch.equal(second[0], puredrop.keep_mask((8, 32), 0.5, base.fold_in(1)))
    third = masks(model, X)
    assert torch.equal(third[0], puredrop.keep_mask((16, 32), 0.5, base.fold_in(0))[8:])
    with pytest.raises(RuntimeError, match="while another is open"), run.forward(), run.forward():
        pass
    with pytest.raises(ZeroDivisionError), run.forward():
        raise ZeroDivisionError
    run.step = 0
    assert same(masks(model, X), first)


def test_a_part_that_fails_leaves_the_modules_around_it_known():
    model, x = Net(), torch.randn(4, 5, 16)
    run = puredrop.reproducible(model)
    with run.forward(4):
        with pytest.raises(RuntimeError):
            model.blocks[0](x[..., :3])
        (mask,) = masks(lambda x: nn.functional.dropout(x, 0.5), x)
    key = puredrop.Key(0).fold_in("").fold_in(":dropout0").fold_in(0).fold_in(0)
    assert torch.equal(mask, puredrop.keep_mask(x.shape, 0.5, key))


def test_functions_that_show_up_late_are_refused_not_passed_over():
    class Late(MLP):
        late = None

        def forward(self, x):
            x = super().forward(x)
            return x if self.late is None else self.late(x)

    model = Late()
    puredrop.reproducible(model)
    model(X)
    model.late = lambda x: nn.functional.dropout(x, 0.5)
    with pytest.raises(RuntimeError, match=r"drew random numbers, which the first one did not.*functional=True"):
        model(X)
    model.late = lambda x: puredrop.functional.dropout(x, 0.5)
    with pytest.raises(RuntimeError, match=r"dropout was called as a function.*functional=True"):
        model(X)
    model = Late()
    puredrop.reproducible(model, functional=True)
    model(X)
    model.late = lambda x: nn.functional.dropout(x, 0.5)
    mask = puredrop.keep_mask((16, 16), 0.5, puredrop.Key(0).fold_in("").fold_in(":dropout0").fold_in(0).fold_in(0))
    assert torch.equal(masks(model, X)[-1], mask[8:])


def test_dropout_alone_in_training_mode_is_pinned():
    """As for Monte Carlo dropout: the model in eval mode, its dropout not."""
    model = Net().eval()
    x = torch.randn(4, 5, 16)
    run = puredrop.reproducible(model)
    model.blocks[0].theirs.train()
    first = masks(model, x)
    run.step = 0
    assert same(masks(model, x), first)
    assert len(first) == 1


def test_the_models_mode_switches_the_hooks():
    model = Net()
    puredrop.reproducible(model)
    x = torch.randn(4, 5, 16)
    first = model(x)
    assert model.blocks[0]._forward_hooks
    model.eval()
    model(x)
    assert not model.blocks[0]._forward_hooks
    model.train()
    assert not torch.equal(model(x), first)
    assert model.blocks[0]._forward_hooks


def test_sites_and_check_see_a_pinned_model():
    model = Net()
    x = torch.randn(4, 5, 16)
    before = str(puredrop.sites(model, x))
    run = puredrop.reproducible(model)
    assert str(puredrop.sites(model, x)) == before
    assert run.state_dict()["tally"] == [0, 0, 0]
    assert puredrop.check(model, x).ok is not None


def test_the_run_is_not_the_model():
    model = puredrop.reproducible(MLP())
    with pytest.raises(TypeError, match=r"the run that puredrop\.reproducible returned, not the model"):
        model(X)


def test_a_key_for_a_model_is_its_seed():
    with pytest.raises(TypeError, match="reproducible has no argument key; the seed of all masks is given as seed="):
        puredrop.reproducible(MLP(), key=puredrop.Key(1))


def test_sharding_is_one_of_two():
    with pytest.raises(ValueError, match="sharding is 'columns'; expected 'batches' or 'rows'"):
        puredrop.reproducible(MLP(), sharding="columns")
