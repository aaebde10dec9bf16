"""Models and data at the edge of what `explain` can be asked: measured rightly, or refused with a reason."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from dropping import MODELS, model_of, relu_net
from puredrop import explain


@pytest.fixture
def data():
    return torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))


@pytest.mark.parametrize("call", ["penalty", "l2_strength", "gradient_noise"])
def test_losses_that_are_no_mean_are_refused(call, data):
    net, (x, y) = relu_net(), data
    function = getattr(explain, call)
    more = {"batch": 8} if call == "gradient_noise" else {}
    with pytest.raises(ValueError, match=r"loss returns shape \(\d+,\); expected one number"):
        function(net, x, y, nn.CrossEntropyLoss(reduction="none"), **more)
    with pytest.raises(ValueError, match="not a sum"):
        function(net, x, y, nn.CrossEntropyLoss(reduction="sum"), **more)
    with pytest.raises(ValueError, match="y has classes 0 to 9; expected 0 to 2"):
        function(net, x, torch.arange(40) % 10, F.cross_entropy, **more)
    with pytest.raises(ValueError, match="one entry for each of 40 rows"):
        function(net, x, y[:3], F.cross_entropy, **more)


CALLS = {
    "penalty": lambda net, x: explain.penalty(net, x, torch.zeros(len(x)).long(), F.cross_entropy),
    "l2_strength": lambda net, x: explain.l2_strength(net, x, torch.zeros(len(x)).long(), F.cross_entropy),
    "weight_scaling_gap": explain.weight_scaling_gap,
    "variance_shift": explain.variance_shift,
    "member_visits": explain.member_visits,
    "coadaptation": lambda net, x: explain.coadaptation(net, x, torch.zeros(len(x)).long()),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_row_and_no_dropout_are_refused(call, data):
    with pytest.raises(ValueError, match="x has 1 row; expected two at least"):
        CALLS[call](relu_net(), data[0][:1])
    with pytest.raises(ValueError, match="dropout"):
        CALLS[call](nn.Sequential(nn.Linear(6, 3)).double(), data[0])


@pytest.mark.parametrize("call", CALLS)
def test_the_model_is_as_it_was(call, data):
    layers = [nn.Linear(6, 14), nn.BatchNorm1d(14), nn.ReLU(), nn.Dropout(0.5), nn.Linear(14, 3)]
    net = nn.Sequential(*layers).double().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    text = str(CALLS[call](net, data[0]))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert text == str(CALLS[call](net, data[0]))  # a pure function of its arguments


def test_dropped_weights_are_no_exact_case_and_cost_what_they_cost():
    """One decision for all rows: squared loss is exact in theory, but not by one noise for all rows together."""
    net = nn.Sequential(puredrop.nn.drop_connect(nn.Linear(3, 1), 0.5)).double()
    x, y = torch.randn(50, 3).double() + 2, torch.randn(50, 1).double()
    weight = net[0].parametrizations.weight.original.detach()
    closed = float((weight.square() * x.square()).sum(1).mean())  # p/(1-p) = 1
    found = explain.penalty(net, x, y, F.mse_loss, members=4000, probes=400)
    assert not found.is_exact
    assert abs(found.measured - closed) < 5 * found.standard_error < 0.5 * closed
    assert abs(found.gauss_newton - closed) < 5 * found.gauss_newton_error < 0.5 * closed
    with pytest.raises(ValueError, match="no dropout of the model acts on its rows"):
        explain.coadaptation(net, x, y, task="regression")
    assert explain.coadaptation(net, x, y, task="regression", at=["0"], members=16).interaction_error >= 0


def test_each_site_alone_is_enumerated_too(data):
    x, y = data
    layers = [nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.3)]
    net = nn.Sequential(*layers, nn.Linear(4, 3)).double()
    found = explain.penalty(net, x, y, F.cross_entropy, per_site=True)
    gap = explain.weight_scaling_gap(net, x)
    for path, other in (("2", "5"), ("5", "2")):
        site = next(one for one in found.sites if one.path == path)
        p, net.get_submodule(other).p = net.get_submodule(other).p, 0.0
        assert site.measured == pytest.approx(explain.penalty(net, x, y, F.cross_entropy).measured)
        assert gap.sites[path].value == pytest.approx(explain.weight_scaling_gap(net, x).of_outputs.value, abs=1e-12)
        net.get_submodule(other).p = p
        assert (site.standard_error, gap.sites[path].standard_error) == (0, 0)


def test_a_layer_used_twice_is_two_places():
    net, x = model_of("twice")
    y = torch.randint(3, (len(x),))
    visits = explain.member_visits(net, x, draws=2000)
    assert list(visits.keep) == ["drop", "drop/1"]
    assert all(visits.worst(place) < 5 for place in visits.keep)
    found = explain.penalty(net, x, y, F.cross_entropy, per_site=True)
    assert [site.path for site in found.sites] == ["drop", "drop/1"]
    assert found.sites[0].measured != found.sites[1].measured
    assert list(explain.weight_scaling_gap(net, x, members=16).sites) == ["drop", "drop/1"]


def test_channels_that_do_not_vary_are_left_out_of_the_shift():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8)).double()
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, -1
    found = explain.variance_shift(net, torch.randn(200, 4).double())
    assert found.layers[0].measured.isnan().tolist() == [True] + [False] * 7
    assert "mean over 7 channels that vary" in str(found)
    assert "nan" not in str(found).lower()
    assert "NaN" not in found.figure().json


def test_a_layer_of_rate_0_next_to_others_is_perturbed_too(data):
    x, y = data
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.4)]
    net = nn.Sequential(*layers, nn.Linear(16, 3)).double()
    a = explain.coadaptation(net, x, y, orders=3, members=16)
    net[5].p = 0.0
    b = explain.coadaptation(net, x, y, orders=3, members=16)
    assert all(bool((a.curves[kind].tables == b.curves[kind].tables).all()) for kind in a.curves)


def test_perturbations_do_not_follow_the_batches(data):
    x, y = data
    a, b = (explain.coadaptation(relu_net_of(1), x, y, orders=2, members=16, batch_size=n) for n in (1024, 40))
    assert a.curves["noise"].score == b.curves["noise"].score


def relu_net_of(seed):
    torch.manual_seed(seed)
    return relu_net()


def test_regressions_of_several_outputs_have_no_classes():
    net, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double(), torch.randn(30, 6).double()
    found = explain.member_visits(net, x, task="regression", members=400, draws=10)
    w = net[1].weight.detach()
    closed = math.sqrt(2 * float((x.square() @ w.square().T).mean()))  # two members, each of variance Σ w²x²
    assert found.disagreement == pytest.approx(closed, rel=0.1)
    assert "rms between two members" in str(found)


def test_what_no_linear_layer_reads_is_named(data):
    x, y = data
    layers = [nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5)]
    net = nn.Sequential(*layers, nn.Linear(8, 60)).double()
    found = explain.l2_strength(net, x, y, F.cross_entropy, probes=59)
    assert found.skipped == {"1": "no torch.nn.Linear reads it"}
    other = explain.l2_strength(net, x, y, F.cross_entropy, probes=59, seed=1)
    away = (found.layers["6"] - other.layers["6"]) / (found.errors["6"].square() + other.errors["6"].square()).sqrt()
    assert 0.8 < float(away.square().mean()) < 1.25  # 480 weights, and their errors say how far two runs differ
    exact = explain.l2_strength(net, x, y, F.cross_entropy)
    assert (exact.probes, float(exact.errors["6"].abs().max())) == (60, 0)
    away = (found.layers["6"] - exact.layers["6"]) / found.errors["6"]
    assert 0.8 < float(away.square().mean()) < 1.25
    assert found.shares["6"] == pytest.approx(exact.shares["6"], rel=0.2)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_of_dropping_is_reached(name):
    """Torch has no forward-mode derivative of recurrent layers: they have no first order in p."""
    net, x = model_of(name)
    y = torch.randint(3, (len(x),))
    assert explain.penalty(net, x, y, F.cross_entropy, members=8, probes=4, per_site=True).gauss_newton > 0
    gap = explain.weight_scaling_gap(net, x, members=8)
    assert (gap.leave_one_out is None) == (name == "recurrent")
    assert explain.gradient_noise(net, x, y, F.cross_entropy, batch=4, batches=3, draws=2).masks > 0
    assert explain.member_visits(net, x, draws=50, members=3).distinct > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda net, x, y: explain.coadaptation(net, x, y, probe_rate=1.0),
            "probe_rate is 1.0; expected a number between",
        ),
        (
            lambda net, x, y: explain.coadaptation(net, x, y, shares=(0.5, 1.5)),
            r"shares is \(0.5, 1.5\); expected numbers",
        ),
        (lambda net, x, y: explain.coadaptation(net, x, y + 5), "y has classes 5 to 7; expected 0 to 2"),
        (lambda net, x, y: explain.coadaptation(net, x, y.double()), "whole numbers"),
        (
            lambda net, x, y: explain.coadaptation(net, x, y, task="regression"),
            r"y has shape \(40,\); expected \(40, 3\)",
        ),
        (lambda net, x, y: explain.weight_scaling_gap(net, x, members=20), "members is 20; expected a multiple of 8"),
        (
            lambda net, x, y: explain.gradient_noise(net, x, y, F.cross_entropy, batch=128),
            "batch is 128, but x has 40 rows",
        ),
        (
            lambda net, x, y: explain.gradient_noise(net, iter(x.split(20)), y, F.cross_entropy, batch=8),
            "x comes in batches of its own",
        ),
        (lambda net, x, y: explain.member_visits(net, x, task="ranking"), "task is 'ranking'; expected"),
        (lambda net, x, y: explain.ridge(x[:1], y[:1], 0.5), "two rows at least"),
        (lambda net, x, y: explain.ridge(x, y, 1.0), "p is 1.0; expected a drop probability in"),
        (lambda net, x, y: explain.ridge(torch.zeros(4, 2), torch.ones(4), 0.5), "drop these columns"),
        (lambda net, x, y: explain.margins(torch.ones(3, 13), torch.ones(13), 0.5), "at most 12 features"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message, data):
    with pytest.raises(ValueError, match=message):
        call(relu_net(), *data)
