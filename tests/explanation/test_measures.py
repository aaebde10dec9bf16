"""What each question of `explain` finds, against enumeration, closed forms and nets of which the answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from dropping import relu_net
from puredrop import explain
from puredrop.explanation._ablation import _explained_share
from puredrop.explanation._loss import curvature_root
from puredrop.explanation.weight_scaling_gap import _geometric, _squared


@pytest.fixture
def data():
    return torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))


def by_hand(net, x, y, loss):
    """Mean loss over all masks of the one site, less that of one pass; and Gauss-Newton by the Jacobian."""
    h, p, last = net[:2](x), net[2].p, net[3]
    units = h.shape[1]
    keep = ((torch.arange(2**units)[:, None] >> torch.arange(units)) & 1).double()
    chance = (1 - p) ** keep.sum(1) * p ** (units - keep.sum(1))
    losses = torch.stack([loss(last(h * one / (1 - p)), y) for one in keep])
    base = loss(last(h), y)
    gauss = 0.0
    for row, label in zip(h, y, strict=True):
        hessian = torch.func.hessian(lambda z, label=label: loss(z[None], label[None]))(last(row))
        jacobian = last.weight * row
        gauss += 0.5 * p / (1 - p) * torch.einsum("aj,ab,bj->", jacobian, hessian, jacobian).item() / len(h)
    return float((chance @ losses - base).detach()), float(gauss)


def test_the_penalty_is_the_enumeration_and_gauss_newton_that_of_the_jacobian(data):
    net, (x, y) = relu_net(), data
    truth, gauss = by_hand(net, x, y, F.cross_entropy)
    found = explain.penalty(net, x, y, F.cross_entropy)
    assert found.measured == pytest.approx(truth, rel=1e-6)
    assert (found.standard_error, found.members) == (0, 256)
    assert found.gauss_newton == pytest.approx(gauss, rel=1e-9)  # one product for each output, and no chance
    assert (found.gauss_newton_error, found.probes) == (0, 3)
    assert found.sites[0].units.sum() == pytest.approx(found.gauss_newton)
    assert not found.is_exact


def test_drawn_products_agree_with_one_for_each_output(data):
    """Thirty outputs and 29 products: within 5 standard errors, in one batch or in six."""
    net, x, y = relu_net(outputs=30), data[0], torch.randint(30, (40,))
    truth = explain.penalty(net, x, y, F.cross_entropy, members=2)
    found = explain.penalty(net, x, y, F.cross_entropy, members=2, probes=29)
    assert (truth.probes, truth.gauss_newton_error, found.probes) == (30, 0, 29)
    assert truth.gauss_newton == pytest.approx(by_hand(net, x, y, F.cross_entropy)[1], rel=1e-9)
    assert 0 < abs(found.gauss_newton - truth.gauss_newton) < 5 * found.gauss_newton_error < 0.2 * truth.gauss_newton
    in_parts = explain.penalty(net, x, y, F.cross_entropy, members=2, probes=29, batch_size=7)
    assert abs(in_parts.gauss_newton - truth.gauss_newton) < 5 * in_parts.gauss_newton_error
    assert in_parts.gauss_newton_error == pytest.approx(found.gauss_newton_error, rel=0.5)


def test_sampled_masks_agree_with_all_of_them(data):
    net, (x, y) = relu_net(13), data
    truth, _ = by_hand(net, x, y, F.cross_entropy)
    found = explain.penalty(net, x, y, F.cross_entropy, members=500, per_site=True)
    assert abs(found.measured - truth) < 5 * found.standard_error < truth
    assert abs(found.sites[0].measured - truth) < 5 * found.sites[0].standard_error
    other = explain.penalty(net, x, y, F.cross_entropy, members=500, batch_size=7)
    assert other.measured == pytest.approx(found.measured, rel=1e-9)  # masks do not follow the batches
    assert other.gauss_newton == pytest.approx(found.gauss_newton, rel=1e-9)


def test_squared_loss_behind_the_last_hidden_layer_is_exact(data):
    net, (x, _) = relu_net(), data
    y = torch.randn(40, 3, dtype=torch.float64)
    h = net[:2](x)
    closed = (net[3].weight.square().sum(0) * h.square()).sum().detach() / y.numel()
    found = explain.penalty(net, x, y, F.mse_loss)
    assert found.is_exact
    assert found.gauss_newton == pytest.approx(float(closed), rel=1e-9)
    assert found.ratio == pytest.approx(1, rel=1e-6)
    deep = nn.Sequential(*net[:3], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    assert not explain.penalty(deep, x, y, F.mse_loss).is_exact


def test_channels_share_a_factor_and_functions_are_reached():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 3)

        def forward(self, x):
            h = F.dropout2d(torch.relu(self.conv(x)), 0.4, self.training)
            return self.last(h.flatten(1))

    net, x, y = Net().double(), torch.randn(10, 1, 6, 6).double(), torch.randn(10, 3).double()
    h = torch.relu(net.conv(x))
    parts = torch.einsum("nchw,kchw->nkc", h, net.last.weight.view(3, 4, 4, 4))
    closed = 0.4 / 0.6 * parts.square().sum((0, 1)) / y.numel()
    found = explain.penalty(net, x, y, F.mse_loss)
    closed = closed.detach()
    torch.testing.assert_close(found.sites[0].units, closed)
    assert found.measured == pytest.approx(float(closed.sum()), rel=1e-6)  # 2^4 masks


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (F.cross_entropy, torch.tensor([0, 2, 1, -100])),
        (nn.CrossEntropyLoss(ignore_index=2), torch.tensor([0, 2, 1, 1])),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), torch.tensor([0, 2, 1, 1])),
        (F.mse_loss, torch.randn(4, 3)),
        (F.binary_cross_entropy_with_logits, torch.rand(4, 3)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([0, 2, 1, 1])),
    ],
)
def test_roots_are_those_of_the_hessian(loss, y):
    z = torch.randn(4, 3)
    hessian = torch.func.hessian(lambda z: loss(z, y))(z)
    multiply = curvature_root(loss, z, y)
    basis = torch.eye(3)
    columns = torch.stack([multiply(one.expand(4, 3)) for one in basis], 2)  # (rows, outputs, noise)
    for row in range(4):
        torch.testing.assert_close(columns[row] @ columns[row].T, hessian[row, :, row], rtol=1e-4, atol=1e-6)


def test_l2_strengths_are_the_penalty_of_a_linear_last_layer(data):
    """One output: the pairs of one input are none, so that the diagonal is all."""
    net, (x, _) = relu_net(outputs=1), data
    y = torch.randn(40, 1, dtype=torch.float64)
    found = explain.l2_strength(net, x, y, F.mse_loss)
    h = net[:2](x).detach()
    torch.testing.assert_close(found.layers["3"], (2 * h.square().mean(0)).unsqueeze(0))
    whole = explain.penalty(net, x, y, F.mse_loss)
    said = float((0.5 * found.layers["3"] * net[3].weight.detach().square()).sum())
    assert said == pytest.approx(whole.measured, rel=1e-6)


def test_means_of_all_networks_are_exact_and_linear_logits_have_no_gap(data):
    x, _ = data
    ensemble = puredrop.DropoutEnsemble(net := relu_net())
    found = explain.weight_scaling_gap(net, x)
    torch.testing.assert_close(found.arithmetic, ensemble.exact(x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.geometric, ensemble.exact(x, mean="geometric"), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.one_pass, net.eval()(x).softmax(1).detach(), rtol=1e-6, atol=1e-8)
    assert found.to_geometric.value < 1e-7 < 1e-3 < found.to_arithmetic.value
    assert found.members == 256


def test_a_gap_is_sampled_found_and_laid_to_its_site():
    torch.manual_seed(1)
    layers = [nn.Dropout(0.3), nn.Linear(20, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)]
    net, x = nn.Sequential(*layers).double(), torch.randn(30, 20).double()
    found = explain.weight_scaling_gap(net, x, members=1024)
    inner, last = found.sites["0"], found.sites["3"]
    assert inner.value > 5 * inner.standard_error  # in front of a ReLU
    assert last.value < 3 * last.standard_error  # in front of the last layer: none
    truth = torch.stack([puredrop.DropoutEnsemble(net, lambda o: o, seed=9).predict(x, members=8000).mean])[0]
    error = (found.outputs - (truth - net.eval()(x).detach())).square().mean().sqrt()
    assert float(error) < 5 * 0.3 * found.of_outputs.value


def test_leaving_one_out_is_the_gap_at_a_small_rate():
    net = nn.Sequential(nn.Dropout(0.01), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    found = explain.weight_scaling_gap(net, torch.randn(30, 6).double(), task="regression")
    assert found.leave_one_out.alignment > 0.99
    assert found.leave_one_out.size == pytest.approx(found.of_outputs.value, rel=0.1)
    torch.testing.assert_close(found.leave_one_out.values, found.outputs, rtol=0.2, atol=0.05 * found.of_outputs.value)


def test_the_variance_shift_is_that_of_the_closed_forms():
    p, x = 0.4, torch.randn(3000, 5).double() * torch.linspace(0.5, 2, 5) + torch.linspace(-1, 1, 5)
    linear = nn.Linear(5, 4, bias=False).double()
    c, v, w = x.mean(0), x.var(0, correction=0), linear.weight.detach()
    direct = v / ((c**2 + v) / (1 - p) - c**2)
    through = (w @ torch.cov(x.T, correction=0) @ w.T).diagonal()
    behind = through / (through + p / (1 - p) * (w.square() @ (v + c**2)))
    for layers, truth in (([nn.BatchNorm1d(5)], direct), ([linear, nn.BatchNorm1d(4)], behind)):
        net = nn.Sequential(nn.Dropout(p), *layers).double()
        (one,) = explain.variance_shift(net, x, members=64).layers
        assert bool(((one.predicted - truth).abs() < 5 * one.predicted_error + 1e-9).all())
        assert bool(((one.measured - truth).abs() < 5 * one.standard_error).all())
        assert float(one.standard_error.max()) < 0.02
        assert bool(((v.mean() / v.mean() - truth).abs() > 0.1).all())  # no shift would be 1
    before = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(p)).double()
    assert explain.variance_shift(before, x).unreached == ("0",)


def test_gradient_noise_of_a_linear_model_is_known():
    """Squared loss of w·(m∘x)/q at w = 0: the gradient is -2y (m∘x)/q, whose variance over masks is 4 y² ρ x²."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1, bias=False)).double()
    nn.init.zeros_(net[1].weight)
    x, y = torch.randn(64, 6).double(), torch.randn(64, 1).double()
    found = explain.gradient_noise(net, x, y, F.mse_loss, batch=64, batches=40, draws=16)
    closed = (4 * y.square() * x.square()).sum() / 64**2
    common = 4 * (y * x).mean(0).square().sum()
    assert abs(found.masks - float(closed)) < 5 * found.masks_error < 0.2 * float(closed)
    assert abs(found.shared - float(common)) < 5 * found.shared_error
    assert found.predicted == pytest.approx(float(closed), rel=0.05)
    assert found.rows < 5 * found.rows_error + 1e-6  # every batch is all rows
    assert found.grouped(64) == pytest.approx(found.masks)
    assert found.grouped(1) == pytest.approx(found.shared)
    assert found.averaged(4) == found.masks / 4
    with pytest.raises(ValueError, match="groups is 65"):
        found.grouped(65)


def test_visits_count_all_networks_of_few_units_and_never_one_twice_of_many(data):
    few = explain.member_visits(relu_net(4), data[0], draws=5000)
    assert (few.units, few.distinct, few.share) == (4, 16, 1)
    many = explain.member_visits(relu_net(200), data[0], draws=3000)
    assert (many.distinct, many.share < 1e-50) == (3000, True)
    assert many.worst("2") < 5
    torch.testing.assert_close(many.keep["2"].mean(), torch.tensor(0.5).double(), atol=0.005, rtol=0)
    assert 0 < many.disagreement < 1


def test_members_of_a_net_whose_units_do_nothing_do_not_disagree(data):
    net = relu_net()
    nn.init.zeros_(net[3].weight)
    found = explain.member_visits(net, data[0])
    assert (found.disagreement, found.disagreement_error) == (0, 0)


def redundant(copies):
    """Ten units that all say the same, or one of them that says it alone and nine that say nothing."""
    net = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.zero_()
        net[3].weight.zero_(), net[3].bias.copy_(torch.tensor([0.5, 0.0]))
        net[3].weight[1, :copies] = 1 / copies
    return net


def test_many_that_say_the_same_survive_what_one_does_not():
    x = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)]).double()
    y = torch.arange(100) // 50
    many, one = (explain.coadaptation(redundant(n), x, y, shares=(0.0, 0.5), orders=32) for n in (10, 1))
    assert many.curves["random"].score == (1.0, 1.0)
    survive = one.curves["random"].score[1]
    assert 0.5 < survive < 1  # right on zeros, and on ones where the one unit is among those left
    difference = many.curves["random"].minus(one.curves["random"])[1]
    assert difference.excludes_zero
    assert difference.estimate == pytest.approx(1 - survive)
    assert many.sparsity == pytest.approx(0.5)
    assert many.correlation == pytest.approx(1)


def test_a_model_of_rate_0_is_perturbed_in_the_same_orders(data):
    x, y = data
    net = relu_net(32)
    a = explain.coadaptation(net, x, y, orders=4, members=32)
    net[2].p = 0.0
    b = explain.coadaptation(net, x, y, orders=4, members=32)
    named = explain.coadaptation(net, x, y, orders=4, members=32, at=["2"])
    for other in (b, named):
        assert all(bool((a.curves[k].tables == other.curves[k].tables).all()) for k in a.curves)
        assert other.interaction == a.interaction
    with pytest.raises(ValueError, match="measured in the same way"):
        a.curves["random"].minus(b.curves["noise"])


def test_outputs_that_are_sums_over_units_do_not_interact():
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 1)).double()
    x, y = torch.randn(50, 4).double(), torch.randn(50, 1).double()
    found = explain.coadaptation(net, x, y, task="regression", members=1024)
    assert abs(found.interaction) < 5 * found.interaction_error < 0.3
    deep = nn.Sequential(*net[:3], nn.Linear(12, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 1)).double()
    with torch.no_grad():
        deep[3].weight.mul_(4)
    found = explain.coadaptation(deep, x, y, task="regression", members=1024)
    assert found.interaction > 5 * found.interaction_error


def test_noise_that_is_no_decision_is_off_and_named(data):
    x, y = data
    net = nn.Sequential(nn.Linear(6, 8), puredrop.nn.GaussianDropout(0.3), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    found = explain.penalty(net, x, y, F.cross_entropy)
    assert list(found.skipped) == ["1"]
    assert "Gaussian" in str(found)
    with pytest.raises(ValueError, match="only noise that is no decision"):
        explain.penalty(
            nn.Sequential(puredrop.nn.GaussianDropout(0.3), nn.Linear(6, 3)).double(), x, y, F.cross_entropy
        )


def test_figures_have_axes_with_titles_and_words_for_what_they_show(data):
    x, y = data
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    found = [
        explain.penalty(net, x, y, F.cross_entropy, per_site=True),
        explain.ridge(x, x[:, 0], 0.5).descend(200),
        explain.margins(x, torch.ones(6), 0.5),
        explain.l2_strength(relu_net(), x, y, F.cross_entropy),
        explain.weight_scaling_gap(net, x),
        explain.variance_shift(net, x),
        explain.gradient_noise(net, x, y, F.cross_entropy, batch=8),
        explain.member_visits(net, x, draws=100),
        explain.coadaptation(net, x, y, members=32),
    ]
    for one in found:
        figure = one.figure()
        drawn = figure.plotly()  # which refuses what is no property of Plotly's
        assert drawn.layout.xaxis.title.text
        assert drawn.layout.yaxis.title.text
        assert len(figure.alt) > 40
        assert "<" not in figure.json
        assert "@" not in drawn.to_json()
    assert math.isfinite(found[0].ratio_error)


def test_a_distance_has_no_bias_from_its_noise():
    """400 repeats; five standard errors. Without the product of different groups noise would add its own square."""
    squares = torch.tensor([_squared(0.1 + torch.randn(8, 50, dtype=torch.float64)) for _ in range(400)])
    error = float(squares.std()) / 20
    assert abs(float(squares.mean()) - 0.01) < 5 * error
    assert error < 0.005
    exact = torch.full((8, 50), 0.1, dtype=torch.float64)
    assert _squared(exact) == pytest.approx(0.01)


def test_the_first_order_share_has_no_bias_with_fewer_members_than_units():
    """A sum over 40 units from 24 members, 400 repeats; the bias of the plain estimate would be 40/24."""
    weights = torch.randn(40, dtype=torch.float64)
    shares = []
    for _ in range(400):
        signs = 2.0 * torch.randint(2, (24, 40)).double() - 1
        outputs = signs @ weights
        shares.append(float(_explained_share(outputs.outer(outputs), signs @ signs.T)))
    assert sum(shares) / 400 == pytest.approx(1, abs=0.25)


def test_a_geometric_mean_of_few_members_is_not_taken_for_a_distance():
    """4000 means of 8 groups whose logits have a deviation of .5; five standard errors."""
    logits = torch.tensor([1.0, 0.0, -1.0]).double()
    groups = logits + 0.5 * torch.randn(8, 4000, 3).double()
    for values, is_biased in ((_geometric(groups), False), (groups.softmax(2), True)):
        away = values.mean(0) - logits.softmax(0)
        assert bool((away.mean(0).abs() > 5 * away.std(0) / 4000**0.5).any()) == is_biased
    net, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 3)).double(), torch.randn(400, 20).double()
    found = explain.weight_scaling_gap(net, x, members=64)  # linear logits
    assert found.to_geometric.value < 3 * found.to_geometric.standard_error
