"""A network taken out of a run: itself, its undropped model, and the very masks of its training, had again from keys."""

import pytest
import torch
from torch import nn

from puredrop import explain
from puredrop.compare import training
from puredrop.compare.copies import copy_of_run
from puredrop.compare.data import Data, DataSplit
from puredrop.compare.network import Network
from puredrop.compare.tasks import Classification
from puredrop.compare.training import Arm, train


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr("puredrop.compare.copies.BATCH", 16)
    x = torch.randn(40, 5)
    rows = DataSplit(x, torch.randint(3, (40,)))
    return Data("made up", Classification(3), rows, rows, rows)


def test_the_masks_are_those_that_training_used(data, monkeypatch):
    """Every step of three epochs of 40 rows in batches of 16."""
    network, seen = Network((5, 12, 7, 3), (0.5, 0.25), 0.2), []
    forward = Network.forward

    def look(self, parameters, x, drop):
        kept = {}

        def noted(h, rate, site):
            kept[site] = drop(torch.ones_like(h), rate, site)[2].ne(0)
            return drop(h, rate, site)

        output = forward(self, parameters, x, noted)
        if torch.is_grad_enabled():
            seen.append(kept)
        return output

    monkeypatch.setattr(Network, "forward", look)
    arm = Arm.start(network, range(4), data.train.x, dropout=True)
    train(arm, network, data, range(4), 3)
    found = copy_of_run(data, network, {"dropout": arm.best, "none": arm.best}, 2, 3)
    again = list(found.masks())
    assert len(again) == 9  # three of an epoch, the last of 8 rows
    assert all(set(own) == {"input", "2", "5"} for own in (*again, *seen))
    rows = {site: torch.cat([own[site] for own in again]) for site in ("input", "2", "5")}
    trained = {site: torch.cat([step[site] for step in seen]) for site in rows}
    assert all(torch.equal(rows[site], trained[site]) for site in rows)
    visits = explain.member_visits(found.model, data.test.x, masks=found.masks())
    assert visits.draws == 120
    assert torch.equal(visits.keep["2"], rows["2"].double().mean(0))
    other = copy_of_run(data, network, {"dropout": arm.best, "none": arm.best}, 1, 3).masks()
    assert not torch.equal(next(iter(other))["2"], again[0]["2"])


def test_the_modules_are_the_copies(data):
    network = Network((5, 12, 3), (0.5,), 0.1)
    weights = network.initial(range(3))
    found = copy_of_run(data, network, {"dropout": weights, "none": weights}, 1, 1)
    x = torch.randn(6, 5)
    expected = network.outputs(weights, x.expand(3, -1, -1))[1]
    for model, rates in ((found.model, [0.1, 0.5]), (found.undropped, [0.0, 0.0])):
        assert not model.training
        torch.testing.assert_close(model(x), expected)
        assert [one.p for one in model.modules() if isinstance(one, nn.Dropout)] == rates


def test_masks_of_other_sites_are_refused():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    x = torch.randn(10, 4)
    right = torch.rand(50, 6) < 0.5
    assert explain.member_visits(net, x, masks=[{"2": right}]).keep["2"].tolist() == right.double().mean(0).tolist()
    for wrong in ({"1": right}, {"2": right[:, :5]}, {"2": right, "3": right}):
        with pytest.raises(ValueError, match=r"masks has .* of each row; expected \{'2': \(6,\)\}"):
            explain.member_visits(net, x, masks=[wrong])
