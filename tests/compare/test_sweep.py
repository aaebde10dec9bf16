"""The sweep of rates: nested common masks, each rate trained as it would be alone, the interval by the rule."""

import json

import numpy as np
import pytest
import torch

from puredrop.cli import main
from puredrop.compare import sweep as sweeping
from puredrop.compare.data import Data, DataSplit
from puredrop.compare.network import Network
from puredrop.compare.sweep import Sweep, section, sweep_record
from puredrop.compare.tasks import Classification
from puredrop.compare.training import Arm, train
from puredrop.rng import Key

RATES = (0.0, 0.3, 0.6)
NETWORK = Network((5, 16, 12, 3), (0.5, 0.5))


@pytest.fixture
def data():
    x = torch.randn(150, 5)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    parts = [DataSplit(x[start : start + 50], y[start : start + 50]) for start in (0, 50, 100)]
    return Data("made up", Classification(3), *parts)


def ones(rates, key):
    """What is kept of ones by each rate's copies, at the first hidden layer."""
    sweep, found = Sweep(NETWORK, rates), []
    parameters = sweep.initial([0, 1] * len(rates))
    for name, value in parameters.items():
        value.fill_(1.0 if name == "0.bias" else 0.0)
    parameters["3.weight"].copy_(torch.eye(12, 16).expand(len(value), -1, -1))
    forward = Network.forward

    def look(self, parameters, x, drop):
        def noted(h, rate, site):
            out = drop(h, rate, site)
            found.append(out)
            return out

        return forward(self, parameters, x, noted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "forward", look)
        sweep.outputs(parameters, torch.zeros(2 * len(rates), 40, 5), key)
    return found[1].unflatten(0, (len(rates), 2))


def test_what_a_lower_rate_drops_a_higher_one_drops_too():
    kept = ones(RATES, Key(3)).ne(0)
    assert bool(kept[0].all())
    for low, high in ((0, 1), (1, 2)):
        assert not bool((kept[high] & ~kept[low]).any())
        assert int(kept[high].sum()) < int(kept[low].sum())
    assert not torch.equal(kept[1, 0], kept[1, 1])  # seeds have masks of their own


def test_copies_start_from_the_same_weights_at_every_rate():
    found = Sweep(NETWORK, RATES).initial([0, 1] * 3)
    alone = NETWORK.initial([0, 1])
    for name, value in found.items():
        assert all(torch.equal(part, alone[name]) for part in value.split(2))


def test_a_rate_learns_among_others_what_it_learns_alone(data):
    sweep = Sweep(NETWORK, RATES)
    arm = Arm.start(sweep, [0, 1] * 3, data.train.x, dropout=True)
    train(arm, sweep, data, [0, 1] * 3, 5)
    for i, p in enumerate(RATES):
        network = Network(NETWORK.sizes, (p, p))
        alone = Arm.start(network, range(2), data.train.x, dropout=True)
        train(alone, network, data, range(2), 5)
        for name, value in alone.best.items():
            torch.testing.assert_close(arm.best[name][2 * i : 2 * i + 2], value, rtol=1e-4, atol=1e-5)


def losses(monkeypatch, per_rate):
    """A sweep whose rows have these losses, (rates, seeds, rows)."""
    sweep = Sweep(NETWORK, tuple(k / 10 for k in range(len(per_rate))))
    table = torch.tensor(per_rate).flatten(0, 1)

    class Task:
        def loss(self, outputs, y):
            return table

    monkeypatch.setattr(Sweep, "outputs", lambda self, best, x: x)
    rows = DataSplit(torch.zeros(table.shape[1], 5), torch.zeros(table.shape[1]).long())
    return sweep_record(sweep, {"0.bias": torch.zeros(len(table), 1)}, Data("d", Task(), rows, rows, rows), 1.0)


def test_the_interval_ends_at_the_first_rate_that_is_found_worse(monkeypatch):
    noise = np.random.default_rng(0).normal(size=(5, 4, 60)) * 0.1
    base = np.array([0.5, 0.004, 0.0, 0.003, 0.3])[:, None, None]
    found = losses(monkeypatch, noise - noise.mean((1, 2), keepdims=True) + base)
    assert found["best"] == 0.2
    assert found["interval"] == [0.1, 0.3]
    text = section(found, True)
    assert text.sentence.startswith("p=0.2; any p in [0.1, 0.3] is within noise.")
    assert "60 validation rows" in text.how
    assert text.figures[0].layout["xaxis"]["title"]["text"] == "rate of every hidden layer"
    band = text.figures[0].layout["shapes"][0]
    assert (band["x0"], band["x1"]) == pytest.approx((0.05, 0.35))


def test_a_rate_beyond_one_that_is_worse_does_not_count(monkeypatch):
    noise = np.random.default_rng(1).normal(size=(4, 4, 60)) * 0.1
    base = np.array([0.0, 0.5, 0.001, 0.002])[:, None, None]
    found = losses(monkeypatch, noise - noise.mean((1, 2), keepdims=True) + base)
    assert found["interval"] == [0.0, 0.0]
    assert "no neighbouring rate is within noise" in section(found, False).sentence


def test_the_command_trains_a_sweep_and_the_page_shows_it(tmp_path, capsys):
    out = tmp_path / "run"
    line = ["compare", "digits", "--rows", "120", "--hidden", "12", "--rates", "0.5", "--seeds", "2", "--epochs", "2"]
    assert main([*line, "--sweep", "0:0.6:0.3", "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["sweep"]["rates"] == [0.0, 0.3, 0.6]
    assert [len(one["per_seed"]) for one in found["sweep"]["loss"]] == [2, 2, 2]
    assert set(found["arms"]) == {"none", "dropout"}
    page = (out / "report.html").read_text()
    for text in ('<section id="rates">', "--sweep 0:0.6:0.3", "How does dropout work?", "What did it cost?"):
        assert text in page
    assert not (out / "weights-sweep.safetensors").exists()
    assert main([*line, "--sweep", "0:0.6:0.3", "--out", str(out), "--resume"]) == 0  # finished: nothing to do
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sweep", "0-1"], "expected start:stop:step, such as 0:0.8:0.1"),
        (["--sweep", "0:0.8:0"], "expected start:stop:step"),
        (["--sweep", "0:1:0.5"], "expected 2 to 20 of them in [0, 1)"),
        (["--sweep", "0.1:0.1:0.1"], "expected 2 to 20 of them"),
        (["--sweep", "0:0.8:0.1", "--model", "m:f"], "--sweep is for the built-in network, but --model is given"),
    ],
)
def test_bad_sweeps(tmp_path, capsys, options, says):
    try:
        code = main(["compare", "digits", *options, "--out", str(tmp_path / "run")])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert sweeping.Sweep.splits is False  # seeds of a sweep are trained by one process
