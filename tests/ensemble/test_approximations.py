"""The mean of all members by enumeration, and what stands for it: sampling, weight scaling, moments."""

import itertools

import pytest
import torch
from torch import nn

import puredrop


def small(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def by_hand(net, x, sites):
    """(members, probabilities): every mask of an nn.Sequential, by multiplication."""
    outputs, weights = [], []
    for states in itertools.product([0, 1], repeat=sum(n for _, n, _ in sites)):
        bits, factors, weight = list(states), {}, 1.0
        for index, n, p in sites:
            own = torch.tensor([bits.pop(0) for _ in range(n)], dtype=torch.float64)
            weight *= float(torch.prod(own * (1 - p) + (1 - own) * p))
            factors[index] = own / (1 - p)
        h = x
        for i, layer in enumerate(net):
            h = h * factors[i] if i in factors else layer(h)
        outputs.append(h)
        weights.append(weight)
    return torch.stack(outputs), torch.tensor(weights, dtype=torch.float64)


@pytest.fixture
def net():
    layers = [nn.Dropout(0.2), nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)]
    return small(*layers).double()


def test_exact_means_are_those_of_every_mask(net):
    x = torch.randn(4, 3, dtype=torch.float64)
    outputs, weights = by_hand(net, x, [(0, 3, 0.2), (3, 5, 0.5)])
    ensemble = puredrop.DropoutEnsemble(net)
    arithmetic = torch.einsum("m,mrc->rc", weights, outputs.softmax(-1))
    geometric = torch.einsum("m,mrc->rc", weights, outputs).softmax(-1)
    torch.testing.assert_close(ensemble.exact(x), arithmetic, rtol=0, atol=1e-12)
    torch.testing.assert_close(ensemble.exact(x, mean="geometric"), geometric, rtol=0, atol=1e-12)
    regression = puredrop.DropoutEnsemble(net, "regression").exact(x)
    torch.testing.assert_close(regression, torch.einsum("m,mrc->rc", weights, outputs), rtol=0, atol=1e-12)
    alone = puredrop.DropoutEnsemble(net, masks="independent")
    torch.testing.assert_close(alone.exact(x), arithmetic, rtol=0, atol=1e-12)
    assert ensemble.num_members == 2**8
    assert repr(ensemble.num_members) == "2^8"
    # The three are not the same thing (theory: 2).
    scaled = ensemble.weight_scaling(x)
    assert (scaled - arithmetic).abs().max() > 1e-3
    assert (scaled - geometric).abs().max() > 1e-4


def test_weight_scaling_is_the_geometric_mean_where_logits_are_linear_in_the_masks():
    net = small(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    ensemble = puredrop.DropoutEnsemble(net)
    torch.testing.assert_close(ensemble.weight_scaling(x), ensemble.exact(x, mean="geometric"), rtol=0, atol=1e-12)
    assert (ensemble.weight_scaling(x) - ensemble.exact(x)).abs().max() > 1e-3


@pytest.mark.parametrize("balanced", [True, False])
def test_samples_have_the_mean_of_all_members_within_their_error(net, balanced):
    """12 figures, 5 standard errors of 250 blocks: false alarm below 10^-5."""
    net, x = net.float(), torch.randn(4, 3)
    ensemble = puredrop.DropoutEnsemble(net, balanced=balanced, seed=3)
    found = ensemble.predict(x, members=4000)
    assert ((found.mean - ensemble.exact(x)).abs() / found.standard_error).max() < 5
    assert found.standard_error.max() < 0.01


def test_balanced_masks_make_the_error_smaller_and_the_standard_error_says_how_large_it_is(net):
    """Over 200 seeds: squared error at T=64 less than half (theory: 2.3 to 2.9 times); standard errors fit within 25 %."""
    net, x = net.float(), torch.randn(4, 3)
    truth = puredrop.DropoutEnsemble(net).exact(x)
    squared, claimed = {}, {}
    for balanced in (True, False):
        ensemble, errors, standard = None, [], []
        for seed in range(200):
            one = puredrop.DropoutEnsemble(net, balanced=balanced, seed=seed)
            one._survey = ensemble._survey if ensemble else None  # the same model
            ensemble = one
            found = one.predict(x, members=64)
            errors.append((found.mean - truth).square())
            standard.append(found.standard_error.square())
        squared[balanced], claimed[balanced] = torch.stack(errors).mean(), torch.stack(standard).mean()
        assert 0.75 < claimed[balanced] / squared[balanced] < 1.33
    assert squared[False] / squared[True] > 2


def test_more_than_twenty_units_are_refused():
    net = small(nn.Linear(2, 21), nn.Dropout(), nn.Linear(21, 2))
    with pytest.raises(ValueError, match=r"21 units, which makes 2\^21 members; at most 20"):
        puredrop.DropoutEnsemble(net).exact(torch.randn(1, 2))
    with pytest.raises(ValueError, match=r"mean is 'geometric', but task is 'regression'"):
        puredrop.DropoutEnsemble(net, "regression").exact(torch.randn(1, 2), mean="geometric")


MOMENTS = {
    "linear": (lambda: small(nn.Dropout(0.3), nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), (4, 6), 1.0),
    "channels": (
        lambda: small(nn.Conv2d(1, 3, 3), nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(48, 2)),
        (2, 1, 6, 6),
        1.0,
    ),
    "relu": (
        lambda: small(nn.Linear(6, 200), nn.ReLU(), nn.Dropout(0.3), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 2)),
        (4, 6),
        0.05,
    ),
}


@pytest.mark.parametrize("name", ["linear", "channels"])
def test_moments_are_exact_where_the_net_is_linear(name):
    """Against 30 000 members: the mean within 5 standard errors, covariances within 5 % of the largest."""
    make, shape, _ = MOMENTS[name]
    net, x = make(), torch.randn(shape)
    ensemble = puredrop.DropoutEnsemble(net, "regression", balanced=False)
    carried, sampled = ensemble.moments(x), ensemble.predict(x, members=30_000, keep=30_000)
    assert ((carried.mean - sampled.mean).abs() / sampled.standard_error).max() < 5
    away = sampled.outputs.double() - sampled.mean
    covariance = torch.einsum("mri,mrj->rij", away, away) / len(away)
    assert (covariance - carried.covariance).abs().max() < 0.05 * covariance.abs().max()
    if name == "linear":
        exact_net = small(nn.Dropout(0.3), nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
        rows = torch.randn(3, 5, dtype=torch.float64)
        outputs, weights = by_hand(exact_net, rows, [(0, 5, 0.3), (2, 4, 0.5)])
        mean = torch.einsum("m,mrc->rc", weights, outputs)
        variance = torch.einsum("m,mrc->rc", weights, (outputs - mean).square())
        found = puredrop.DropoutEnsemble(exact_net, "regression").moments(rows)
        torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.variance, variance, rtol=0, atol=1e-12)


class Straight(nn.Module):
    """A sum of what depends on the same units, without anything that is not linear."""

    def __init__(self):
        super().__init__()
        self.drop, self.a, self.b = nn.Dropout(0.4), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = self.drop(x)
        return self.b(h + self.a(h))


def test_moments_of_a_residual_sum_are_exact():
    torch.manual_seed(0)
    net, x = Straight().double(), torch.randn(3, 5, dtype=torch.float64)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    weights = (masks * 0.6 + (1 - masks) * 0.4).prod(1)
    h = x * masks[:, None] / 0.6
    outputs = net.b(h + net.a(h)).detach()
    mean = torch.einsum("m,mrc->rc", weights, outputs)
    variance = torch.einsum("m,mrc->rc", weights, (outputs - mean).square())
    found = puredrop.DropoutEnsemble(net, "regression").moments(x)
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.variance, variance, rtol=0, atol=1e-12)


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 150), nn.Linear(150, 150), nn.Linear(150, 2)
        self.drop, self.again, self.relu = nn.Dropout(0.3), nn.Dropout(0.2), nn.ReLU()

    def forward(self, x):
        h = self.drop(self.relu(self.a(x)))
        return self.c(h + self.again(self.relu(self.b(h))))


@pytest.mark.parametrize("make", [MOMENTS["relu"][0], Skipping])
def test_moments_through_relus_are_close_with_full_covariance(make):
    torch.manual_seed(1)
    net, x = make(), torch.randn(6, 6)
    ensemble = puredrop.DropoutEnsemble(net, "regression", balanced=False)
    carried, sampled = ensemble.moments(x), ensemble.predict(x, members=6000)
    deviation = sampled.variance.sqrt()
    assert ((carried.mean - sampled.mean).abs() / deviation).max() < 0.1
    ratio = (carried.variance.sqrt() / deviation).log()
    assert ratio.mean().abs() < 0.03
    assert ratio.abs().max() < 0.1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(3, 4), nn.Dropout(), nn.GELU(), nn.Linear(4, 1)], r"2 \(GELU\) is not carried"),
        ([nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4)], r"2 \(BatchNorm1d\) is not carried"),
        ([nn.Linear(3, 4), nn.Dropout(), nn.MaxPool1d(2)], r"2 \(MaxPool1d\) is not carried"),
        ([puredrop.nn.GaussianDropout(0.2), nn.Linear(3, 1)], r"0 \(GaussianDropout\) is not carried"),
    ],
)
def test_moments_refuse_what_they_do_not_carry_by_name(layers, message):
    with pytest.raises(ValueError, match=message):
        puredrop.DropoutEnsemble(nn.Sequential(*layers), "regression").moments(torch.randn(2, 3))


def test_diagonal_moments_refuse_what_depends_on_each_other():
    ensemble = puredrop.DropoutEnsemble(Skipping(), "regression")
    with pytest.raises(ValueError, match="pass covariance='full'"):
        ensemble.moments(torch.randn(2, 6), covariance="diagonal")
