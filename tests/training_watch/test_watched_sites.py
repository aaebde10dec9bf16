"""Sites that are off or on by intention, rates, copies of a watched model, hooks, and bad arguments."""

import copy
import functools
import gc
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from loops import Fixed, Loop, Net, Rated, X, reported
from torch import nn

import puredrop
from puredrop import watch


def test_a_frozen_part_may_stay_in_eval_mode():
    loop = Loop()
    loop.model.encoder.eval().requires_grad_(False)
    for _ in range(2):
        loop.step()
    assert loop.found == []
    loop.model.encoder.requires_grad_(True)  # thawed, and its mode forgotten; seen when the sites are listed again
    with reported("encoder: error PD601"):
        for _ in range(3):
            loop.step()


def test_allowed_by_path_and_by_class():
    for allow in (["encoder.2", "head", "middle"], [nn.Dropout, Rated, Fixed], ""):
        loop = Loop(allow=allow)
        loop.step()
        loop.evaluate()
        assert loop.found == []
        loop.model.eval()
        with reported("PD601"):
            loop.step()
    loop = Loop(allow="encoder")
    loop.step()
    with reported("middle: error PD602: dropout is on in an evaluation: step 1, 2 sites, .*and 1 other place"):
        loop.model.encoder.eval()
        loop.evaluate()


def test_excluded_sites_are_not_watched():
    loop = Loop(exclude=("encoder", Rated))
    loop.model.encoder.eval()
    loop.model.middle.eval()
    loop.step()
    assert loop.watch.report.sites == 1
    assert loop.found == []


def test_sites_without_a_rate_do_not_narrow_the_place():
    loop = Loop(nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.0), nn.Dropout(0.1)))
    loop.model.eval()
    with reported(r"\(model\): error PD601: .* 1 site,"):
        loop.step()


def test_a_rate_that_an_evaluation_zeroed():
    loop = Loop()
    loop.step()
    loop.model.eval()
    loop.model.encoder[2].p = 0.0
    loop.evaluate()
    loop.model.train()
    with reported(r"encoder\.2: error PD601: .* step 1, 1 site, p=0"):
        loop.step()


def test_scheduled_rates():
    loop = Loop()
    puredrop.convert(loop.model)
    scheduler = puredrop.schedules.RateScheduler(loop.model, puredrop.schedules.early(0.3, 3))
    for _ in range(6):
        loop.model.train()
        loop.step()
        loop.model.eval()
        loop.evaluate()
        scheduler.step()
    assert loop.found == []


def test_rates_that_a_loop_sets():
    """A rate falls to 0 by steps, and another one rises from 0."""
    loop = Loop()
    for rate in (0.2, 0.1, 0.0, 0.0):
        loop.model.train()
        loop.step()
        loop.model.eval()
        loop.evaluate()
        loop.model.encoder[2].p = rate
    assert loop.found == []
    loop = Loop(nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.0), nn.Dropout(0.1)))
    for rate in (0.1, 0.2):
        loop.model.train()
        loop.step()
        loop.model.eval()
        loop.evaluate()
        loop.model[1].p = rate
    assert loop.found == []


def test_modules_that_come_and_go():
    loop = Loop()
    loop.step()
    layer = loop.model.encoder[2]
    loop.model.encoder[2] = nn.Dropout(0.5)  # the watched layer stays in training mode, outside of the model
    loop.model.eval()
    loop.evaluate()
    assert layer.training
    assert loop.found == []
    loop.model.train()
    loop.model.later = nn.Dropout(0.4)
    for _ in range(3):
        loop.step()
    assert loop.watch.report.sites == 4


def test_rates_held_in_other_ways():
    loop = Loop()
    del loop.model.encoder[2].p
    loop.model.encoder[2].register_buffer("p", torch.tensor(0.3))
    loop.optimizer.step()
    loop.step()
    assert loop.watch.report.ok
    assert loop.watch.report.sites == 3


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_not_watched(way):
    loop = Loop()
    loop.step()
    copied = way(loop.model)
    with torch.no_grad():
        copied(X)
    assert loop.found == []
    file = io.BytesIO()
    torch.save(loop.model, file)
    file.seek(0)
    torch.load(file, weights_only=False)(X)
    assert copy.deepcopy(loop.optimizer).state_dict()["param_groups"] == loop.optimizer.state_dict()["param_groups"]


def test_stop_removes_every_hook():
    def hooks():
        from torch.optim import optimizer

        return [*optimizer._global_optimizer_pre_hooks.values(), *optimizer._global_optimizer_post_hooks.values()]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as watched:
        assert model._forward_pre_hooks
        assert optimizer._optimizer_step_pre_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    before = len(hooks())
    with watch(model):
        assert len(hooks()) == before + 2
    assert len(hooks()) == before
    watched = watch(model)
    gone = weakref.ref(model)
    del model, optimizer, watched
    gc.collect()
    assert gone() is None
    assert len(hooks()) == before


def test_an_optimizer_is_found_when_it_steps():
    model, other = Net(), Net()
    with watch(model) as watched:
        for net in (other, model):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            net(X).sum().backward()
            optimizer.step()
        assert watched.step == 1
        model.eval()(X).sum().backward()
        with reported("PD601"):
            optimizer.step()


def test_phases_of_a_loop_that_says_them():
    loop = Loop()
    loop.watch.phase = "training"
    loop.evaluate(3, torch.inference_mode)
    loop.step()
    assert loop.found == []
    loop.watch.phase = "evaluation"
    with reported("PD602"):
        loop.model(X)  # with gradients
    with pytest.raises(ValueError, match="phase is 'test'; expected 'training'"):
        loop.watch.phase = "test"


def decorated(forward):
    @functools.wraps(forward)
    def call(*args, **named):
        return forward(*args, **named)

    return call


class Decorated(nn.Module):
    @decorated
    def forward(self, x):
        return F.dropout(x, 0.1, self.training)


def test_other_kinds_of_sites():
    for model, count in (
        (nn.LSTM(6, 6, 2, dropout=0.2), 1),
        (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1), 4),
        (nn.Sequential(puredrop.nn.Dropout(0.1), puredrop.nn.DropPath(0.1), nn.Linear(2, 2)), 2),
        (nn.Sequential(Rated(0.0), nn.Dropout(0.2)), 1),
        (nn.Sequential(Decorated()), 1),
    ):
        with watch(model) as watched:
            assert watched.report.sites == count


def test_nothing_to_watch():
    model = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.0), Rated(0.0))
    with reported("no dropout that can be watched"):
        watched = watch(model)
    assert not watched.report.ok
    assert "nothing is watched" in str(watched.report)
    with pytest.raises(ValueError, match="no dropout that can be watched"):
        watch(model, strict=True)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "text"),
    [
        (["net"], {}, TypeError, "model is str; expected a torch.nn.Module"),
        ([Net(), "sgd"], {}, TypeError, "optimizer is str; expected a torch.optim.Optimizer, or several"),
        ([Net(), 3], {}, TypeError, "optimizer is int"),
        ([Net()], {"allow": ["encodr"]}, ValueError, "allow names 'encodr', .* did you mean 'encoder'"),
        ([Net()], {"allow": [3]}, TypeError, "allow has 3; expected paths of modules, or classes"),
        ([Net()], {"exclude": 3}, TypeError, "exclude has 3"),
        ([Net()], {"exclude": [int]}, TypeError, "exclude has <class 'int'>"),
    ],
)
def test_bad_arguments(arguments, named, error, text):
    with pytest.raises(error, match=text):
        watch(*arguments, **named)
