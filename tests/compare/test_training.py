import copy

import pytest
import torch

from puredrop.compare import training
from puredrop.compare.data import load
from puredrop.compare.network import Network
from puredrop.compare.training import Arm, train

NETWORK = Network((64, 24, 12, 10), (0.5, 0.3))


@pytest.fixture(scope="module")
def digits():
    return load("digits", rows=300)


def trained(data, seeds, dropout, epochs=3):
    arm = Arm.start(NETWORK, seeds, data.train.x, dropout=dropout)
    train(arm, NETWORK, data, seeds, epochs)
    return arm


@pytest.mark.parametrize("dropout", [False, True])
def test_seeds_trained_together_are_seeds_trained_alone(digits, dropout):
    together, alone = trained(digits, range(3), dropout), trained(digits, range(1), dropout)
    for name, value in alone.best.items():
        torch.testing.assert_close(together.best[name][:1], value)
    assert together.best_epoch[:1] == alone.best_epoch


def test_it_learns_and_both_arms_start_alike(digits):
    arms = [trained(digits, range(2), dropout, epochs=80) for dropout in (False, True)]
    for arm in arms:
        first, last = sum(arm.validation_loss[0]) / 2, sum(arm.validation_loss[-1]) / 2
        assert last < 0.9 * first
    assert arms[0].training_loss[0] != arms[1].training_loss[0]
    starts = [Arm.start(NETWORK, range(2), torch.zeros(0), dropout=dropout) for dropout in (False, True)]
    assert all(torch.equal(starts[0].current[name], starts[1].current[name]) for name in starts[0].current)


def test_weight_decay_is_that_of_the_weights_and_not_of_the_gradient(digits, monkeypatch):
    """After one step of all rows the arms differ by the decay of what they started from."""
    monkeypatch.setattr(training, "BATCH", 10_000)
    ends = {}
    for decay in (0.0, 10.0):
        arm = Arm.start(NETWORK, range(2), digits.train.x, dropout=True)
        start = {name: value.clone() for name, value in arm.current.items()}
        train(arm, NETWORK, digits, range(2), 1, weight_decay=decay)
        ends[decay] = arm.best
    for name, value in ends[10.0].items():
        torch.testing.assert_close(value, ends[0.0][name] - training.LEARNING_RATE * 10 * start[name])


@pytest.mark.parametrize("stop", [1, 2])
def test_an_arm_restored_at_any_epoch_ends_with_the_same_bits(digits, stop):
    whole = trained(digits, range(2), True, epochs=4)
    halted = {}

    def on_epoch(arm):
        if arm.epoch == stop:
            tensors = {name: value.detach().clone() for name, value in arm.tensors().items()}
            halted.update(tensors=tensors, state=copy.deepcopy(arm.state()))

    arm = Arm.start(NETWORK, range(2), torch.zeros(0), dropout=True)
    train(arm, NETWORK, digits, range(2), 4, on_epoch)
    resumed = Arm.restore(halted["tensors"], halted["state"], torch.device("cpu"))
    assert resumed.epoch == stop
    train(resumed, NETWORK, digits, range(2), 4)
    for name, value in whole.best.items():
        assert torch.equal(resumed.best[name], value)
    assert resumed.validation_loss == whole.validation_loss
    assert resumed.training_loss == whole.training_loss


def test_the_weights_kept_are_those_of_each_seeds_best_epoch(digits):
    arm = trained(digits, range(3), False, epochs=6)
    x = digits.validation.x.expand(3, -1, -1)
    nll = digits.task.loss(NETWORK.outputs(arm.best, x), digits.validation.y).mean(1)
    for seed in range(3):
        past = [epoch[seed] for epoch in arm.validation_loss]
        assert min(past) == past[arm.best_epoch[seed] - 1] == pytest.approx(nll[seed].item(), rel=1e-5)


def test_an_arm_stops_when_no_seed_improves_any_more():
    arm = Arm.start(NETWORK, range(2), torch.zeros(0), dropout=False)
    arm.epoch, arm.best_epoch = 15, [2, 4]
    assert not arm.finished(100)
    arm.epoch = 16
    assert arm.finished(100)
    arm.epoch, arm.best_epoch = 16, [2, 5]
    assert not arm.finished(100)
    assert arm.finished(16)
