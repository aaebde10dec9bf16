"""The watch of a training loop: right loops are silent, wrong ones are reported once, with place and step."""

import copy
import json
import warnings

import pytest
import torch
from loops import Loop, Net, X, reported
from torch.utils.checkpoint import checkpoint

from puredrop import WatchWarning, watch


def test_a_right_loop_is_silent():
    loop = Loop()
    for _ in range(3):
        for _ in range(3):
            loop.model.train()
            loop.step(forwards=2)
        loop.model.eval()
        loop.evaluate(context=torch.inference_mode)
        loop.evaluate()
    report = loop.watch.report
    assert report.ok
    assert report.to_dict() == {
        "ok": True,
        "sites": 3,
        "steps": 9,
        "training_forwards": 18,
        "evaluation_forwards": 12,
        "findings": [],
    }
    assert loop.watch.step == 9


def test_a_model_that_stays_in_eval_mode():
    loop = Loop()
    for _ in range(2):
        loop.step()
    loop.model.eval()
    loop.evaluate()
    with reported("PD601") as caught:
        for _ in range(3):
            loop.step()
    assert len(caught) == 1
    (finding,) = loop.watch.report
    assert (finding.code, finding.place, finding.step, finding.sites, finding.times) == ("PD601", "", 2, 3, 3)
    assert "(model): error PD601: dropout is off in a training step: step 2, 3 sites, training=False" in str(finding)
    assert not loop.watch.report.ok
    assert json.loads(loop.watch.report.to_json())["findings"][0]["rank"] is None


def test_a_part_that_stays_in_eval_mode():
    loop = Loop()
    loop.model.encoder.eval()
    with reported("encoder: error PD601"):
        loop.step()
    assert loop.found == [("PD601", "encoder", 0)]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_without_eval(context):
    loop = Loop()
    loop.step()
    with reported("PD602") as caught:
        loop.evaluate(3, context)
        loop.step()
        loop.evaluate(3, context)
    assert len(caught) == 1
    (finding,) = loop.watch.report
    assert (finding.code, finding.place, finding.step, finding.times) == ("PD602", "", 1, 6)


def test_inference_mode_is_never_part_of_a_training_step():
    loop = Loop()
    loop.forward()
    with reported("PD602"):
        loop.evaluate(1, torch.inference_mode)
    assert loop.found == [("PD602", "", 0)]


def test_an_evaluation_of_one_batch_after_every_step():
    loop = Loop()
    with reported("PD602"):
        for _ in range(3):
            loop.step()
            loop.evaluate(1)
    assert loop.found == [("PD602", "", 1)]


def test_both_kinds_are_reported():
    loop = Loop()
    with reported("PD602"):
        loop.step()
        loop.evaluate()
    loop.model.eval()
    with reported("PD601"):
        loop.step()
    assert loop.found == [("PD602", "", 1), ("PD601", "", 1)]


def test_a_watch_without_any_training():
    watched = watch(Net())
    with torch.no_grad():
        watched._root(X)
    with reported("PD602"):
        watched.stop()
    assert [one.code for one in watched.report] == ["PD602"]


def test_strict_raises_before_the_weights_change():
    loop = Loop(strict=True)
    loop.model.eval()
    before = copy.deepcopy(loop.model.state_dict())
    with pytest.raises(RuntimeError, match="PD601"):
        loop.step()
    assert all(torch.equal(before[name], value) for name, value in loop.model.state_dict().items())
    loop.model.train()
    loop.step()
    with pytest.raises(RuntimeError, match="PD602"):
        loop.evaluate()
    other = Loop(strict=True)
    other.evaluate()
    with reported("PD602"):
        assert not other.watch.report.ok
    with pytest.raises(RuntimeError, match="first"), other.watch:
        raise RuntimeError("the first error is the one to see")


# Right code that looks wrong.


def teacher_before(loop):
    loop.evaluate(1)
    loop.step()


def teacher_within(loop):
    loop.forward()
    loop.evaluate(2)
    loop.step()


def teacher_of_each_micro_batch(loop):
    for _ in range(2):
        loop.evaluate(1)
        loop.forward()
    loop.optimizer.step()


def rollout(loop):
    loop.model.eval()
    loop.evaluate(4)
    loop.model.train()
    for _ in range(2):
        loop.step()


def attack_in_eval_mode(loop):
    loop.model.eval()
    loop.forward()  # gradients of the input
    loop.model.train()
    loop.step()


def teacher_from_a_later_step(loop):
    if loop.watch.step > 1:
        loop.forward()
        loop.evaluate(1)
    loop.step()


def figures_before_the_step(loop):
    loop.model.train()
    loop.forward()
    loop.model.eval()
    loop.forward()
    loop.optimizer.step()


def half_off_in_turns(loop):
    loop.model.encoder.eval()
    loop.forward()
    loop.model.train()
    loop.model.head.eval()
    loop.model.middle.eval()
    loop.step()
    loop.model.train()


def evaluation_with_gradients(loop):
    loop.step()
    loop.model.eval()
    loop.model(X)
    loop.model.train()


def reentrant(loop):
    x = X.clone().requires_grad_()
    checkpoint(loop.model, x, use_reentrant=True).square().mean().backward()
    loop.optimizer.step()


def recomputed(loop):
    checkpoint(loop.model, X, use_reentrant=False).square().mean().backward()
    loop.optimizer.step()


def average(loop):
    loop.step()
    shadow = copy.deepcopy(loop.model)
    shadow.train()
    with torch.no_grad():
        shadow(X)
    averaged = torch.optim.swa_utils.AveragedModel(loop.model)
    with torch.no_grad():
        averaged(X)


def first_shapes(loop):
    if loop.watch.step == 0:
        loop.evaluate(1)  # lazy layers, shapes
    loop.step()


def monte_carlo(loop):
    loop.step()
    with loop.watch.allowed():
        loop.evaluate()


@pytest.mark.parametrize(
    "turn",
    [
        *(teacher_before, teacher_within, teacher_of_each_micro_batch, rollout, attack_in_eval_mode),
        *(teacher_from_a_later_step, figures_before_the_step, half_off_in_turns),
        *(evaluation_with_gradients, reentrant, recomputed, average, first_shapes, monte_carlo),
    ],
)
def test_no_false_alarm(turn):
    loop = Loop()
    for _ in range(4):
        turn(loop)
    assert loop.found == []


@pytest.mark.parametrize("turn", [teacher_before, teacher_within, rollout, reentrant, first_shapes, average])
def test_and_an_evaluation_in_such_a_loop_is_found(turn):
    loop = Loop()
    for _ in range(3):
        turn(loop)
    with reported("PD602"):
        loop.evaluate(4)
    loop.model.eval()
    with reported("PD601"):
        loop.step()


def test_several_optimizers():
    loop = Loop()
    second = torch.optim.Adam(loop.model.head.parameters())
    loop.watch.attach(second)
    for _ in range(3):
        loop.evaluate(1)  # a teacher
        loop.step()
        loop.forward()
        second.step()
    assert loop.watch.step == 3
    assert loop.found == []
    with reported("PD602"):
        loop.evaluate(2)


def test_an_optimizer_with_a_closure():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    watched = watch(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert watched.report.ok
    model.eval()
    with reported("PD601"):
        optimizer.step(closure)


def test_a_gradient_scaler_that_skips_steps():
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(3):
        scaler.scale(loop.model(X).square().sum() * 1e30).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
    assert loop.watch.step < 3
    assert loop.watch.report.ok


def test_warnings_can_be_errors():
    loop = Loop()
    loop.model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", WatchWarning)
        with pytest.raises(WatchWarning):
            loop.step()
