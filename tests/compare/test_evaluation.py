import numpy as np
import pytest
import torch

from puredrop import Key
from puredrop.compare import evaluation as m
from puredrop.compare.data import Data, DataSplit, load
from puredrop.compare.network import Network
from puredrop.compare.tasks import Regression

NETWORK = Network((64, 24, 12, 10), (0.5, 0.3))


@pytest.fixture(scope="module")
def digits():
    return load("digits", rows=120)


@pytest.fixture(scope="module")
def parameters():
    return {name: 2 * value for name, value in NETWORK.initial(range(2)).items()}


def test_one_pass_by_hand(digits, parameters, monkeypatch):
    monkeypatch.setattr(m, "_ROWS_AT_ONCE", 37)  # a cut in the middle changes nothing
    found = m.evaluate(parameters, NETWORK, digits)
    for seed in range(2):
        one = {name: value[seed : seed + 1] for name, value in parameters.items()}
        p = NETWORK.outputs(one, digits.test.x[None])[0].double().softmax(-1).numpy()
        y = digits.test.y.numpy()
        np.testing.assert_allclose(found.test.nll[seed], -np.log(p[np.arange(len(y)), y]), rtol=1e-5)
        assert (found.test.error[seed] == (p.argmax(1) != y)).all()
        confidence, right = p.max(1), p.argmax(1) == y
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(15)]
        assert found.test.calibration[seed] == pytest.approx(sum(gaps) / len(y), abs=1e-4)
    assert found.training_nll.shape == (2, 100)


def test_the_ensemble_is_the_mean_of_members_that_are_one_network_each(digits, parameters, monkeypatch):
    monkeypatch.setattr(m, "MEMBERS", 5)
    monkeypatch.setattr(m, "_ROWS_AT_ONCE", 100)
    found = m.evaluate_members(parameters, NETWORK, digits)
    root = Key(0).fold_in("compare").fold_in("ensemble")
    x = digits.test.x.expand(2, -1, -1)
    members = [NETWORK.outputs(parameters, x, root.fold_in(i), one_mask=True).double().softmax(-1) for i in range(5)]
    p = torch.stack(members).mean(0)
    expected = -p[:, torch.arange(len(digits.test.y)), digits.test.y].log()
    np.testing.assert_allclose(found.test.nll, expected.numpy(), rtol=1e-5)


def test_fewer_members_are_judged_in_all_disjoint_groups(digits, parameters, monkeypatch):
    monkeypatch.setattr(m, "MEMBERS", 6)
    found = m.evaluate_members(parameters, NETWORK, digits)
    assert list(found.nll_of) == [1, 2, 3, 6]
    root = Key(0).fold_in("compare").fold_in("ensemble")
    x, rows = digits.test.x.expand(2, -1, -1), torch.arange(len(digits.test.y))
    members = [NETWORK.outputs(parameters, x, root.fold_in(i), one_mask=True).double().softmax(-1) for i in range(6)]
    for number in found.nll_of:
        means = torch.stack(members).unflatten(0, (-1, number)).mean(1)
        expected = -means[:, :, rows, digits.test.y].log().mean(0)
        np.testing.assert_allclose(found.nll_of[number], expected.numpy(), rtol=1e-5)


def test_several_networks_are_the_mean_of_their_probabilities(digits, parameters):
    other = {name: value.flip(0) / 2 for name, value in parameters.items()}
    found = m.evaluate(parameters, NETWORK, digits, other)
    x, y = digits.test.x.expand(2, -1, -1), digits.test.y
    p = sum(NETWORK.outputs(one, x).double().softmax(-1) for one in (parameters, other)) / 2
    np.testing.assert_allclose(found.test.nll, -p[:, torch.arange(len(y)), y].log().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.test.uncertainty, torch.special.entr(p).sum(-1).numpy(), rtol=1e-5)
    assert found.training_nll.shape == (2, 100)


def test_fewer_members_of_a_regression_have_the_width_that_fits_them(monkeypatch):
    """Fitted on the validation rows for each group of members, as for all of them."""
    monkeypatch.setattr(m, "MEMBERS", 4)
    network, draw = Network((8, 16, 1), (0.5,)), torch.Generator().manual_seed(0)
    train, validation, test = (
        DataSplit(torch.randn(40, 8, generator=draw), torch.randn(40, generator=draw)) for _ in range(3)
    )
    data = Data("rows", Regression(0.0, 1.0), train, validation, test)
    weights = {name: 3 * value for name, value in network.initial(range(2)).items()}
    found = m.evaluate_members(weights, network, data)
    root = Key(0).fold_in("compare").fold_in("ensemble")

    def outputs(x, member):
        return network.outputs(weights, x.expand(2, -1, -1), root.fold_in(member), one_mask=True)[None]

    alone = [
        data.task.judge(outputs(test.x, i), test.y, lambda i=i: (outputs(validation.x, i), validation.y)).nll
        for i in range(4)
    ]
    np.testing.assert_allclose(found.nll_of[1], np.mean(alone, 0), rtol=1e-5)
