"""The identities of the theory, each exact by enumeration or within five standard errors, each with a wrong formula.

A wrong formula is the same with one thing changed: it must not pass. Masks of enumerations are all 2^n; draws are seeded,
and five standard errors are left by chance in one of 1.7 million.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import puredrop
from puredrop import Key

UNITS, P = 10, 0.3
Q, RHO = 1 - P, P / (1 - P)
KEEP = ((torch.arange(2**UNITS)[:, None] >> torch.arange(UNITS)) & 1).double()


def chances(keep=KEEP, p=P):
    kept = keep.sum(1)
    return (1 - p) ** kept * p ** (keep.shape[1] - kept)


def mean(values, weights=None):
    return torch.tensordot(chances() if weights is None else weights, values, 1)


def variance(values):
    return mean((values - mean(values)).square())


@pytest.fixture
def x():
    return torch.randn(UNITS, dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    a, b = (torch.as_tensor(one, dtype=torch.float64) for one in (a, b))
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


# 1: inverted dropout


def test_the_mean_and_the_expected_sum_are_kept(x):
    y = KEEP * x / Q
    assert close(mean(y), x)
    assert close(mean(y.sum(1)), x.sum())
    assert not close(mean(KEEP * x), x)  # without the scale
    assert not close(mean(KEEP * x / P), x)


def test_the_variance_of_a_unit_and_of_a_weighted_sum(x):
    y, w = KEEP * x / Q, torch.randn(UNITS, dtype=torch.float64)
    assert close(variance(y), RHO * x.square())
    assert close(variance(y @ w), RHO * (w.square() * x.square()).sum())
    assert not close(variance(y), P * Q * x.square())  # of the unscaled mask
    assert not close(variance(y @ w), RHO * (w @ x) ** 2)  # one mask for all units


def test_the_library_draws_masks_of_that_mean_and_variance():
    x = torch.randn(64, dtype=torch.float64)
    y = puredrop.functional.dropout(x.expand(40_000, 64), P, key=Key(3))
    error = (RHO * x.square() / len(y)).sqrt()
    assert bool(((y.mean(0) - x).abs() < 5 * error).all())
    fourth = Q * (1 / Q - 1) ** 4 + P  # of the centred factor
    spread = ((fourth - RHO**2) * x**4 / len(y)).sqrt()
    assert bool(((y.var(0) - RHO * x.square()).abs() < 5 * spread + 1e-3 * x.square()).all())
    assert not bool(((Q * y.mean(0) - x).abs() < 5 * error).all())


def first_order(f, x, linear=True):
    without = x.expand(UNITS, UNITS) * (1 - torch.eye(UNITS))
    slope = torch.func.jacrev(f)(x) if linear else torch.zeros(UNITS)
    return (f(without) - f(x) + x * slope).sum()


@pytest.mark.parametrize("f", [lambda z: torch.relu(z.sum(-1)), lambda z: z.sum(-1).tanh(), lambda z: z.prod(-1)])
def test_leaving_one_out_is_the_gap_to_first_order(x, f):
    x = x.abs() * torch.where(torch.arange(UNITS) % 2 == 0, 1.0, -0.9)

    def remainder(p, linear=True):
        gap = mean(f(KEEP * x / (1 - p)), chances(p=p)) - f(x)
        return abs(float(gap - p * first_order(f, x, linear)))

    # What is left falls as p²: ten times smaller p, a hundred times smaller.
    assert remainder(1e-4) < remainder(1e-3) / 80 + 1e-13
    assert remainder(1e-4, linear=False) > remainder(1e-3, linear=False) / 20


def test_the_taylor_form_is_no_first_order_in_p():
    """For a ReLU away from its kink the second derivative is 0, and the gap is not."""
    x, f = torch.tensor([1.0, -0.9] * 5).double(), lambda z: torch.relu(z.sum(-1))
    assert float(torch.func.hessian(f)(x).abs().sum()) == 0
    gap = mean(f(KEEP * x / 0.99), chances(p=0.01)) - f(x)
    assert abs(float(gap) - 0.01 * float(first_order(f, x))) < 0.1 * abs(float(gap))


# 2: the ensemble


def means(logits):
    arithmetic = mean(logits.softmax(-1))
    geometric = mean(logits.log_softmax(-1)).softmax(-1)
    return arithmetic, geometric


def test_mask_probabilities_sum_to_one():
    assert close(chances().sum(), 1.0)
    assert not close((P ** KEEP.sum(1)).sum(), 1.0)


def test_the_normalised_geometric_mean_is_the_softmax_of_the_mean_logits(x):
    w = torch.randn(UNITS, 7, dtype=torch.float64)
    logits = torch.relu(KEEP * x @ w) @ torch.randn(7, 3, dtype=torch.float64)
    assert close(means(logits)[1], mean(logits).softmax(-1))
    assert not close(means(logits)[0], mean(logits).softmax(-1), 1e-4)


def test_weight_scaling_is_the_geometric_mean_of_softmax_regression_and_deep_linear_nets(x):
    """Multi-affine in independent masks: dropped inputs, and dropped hidden units behind them."""
    a, b = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    hidden = KEEP[:, :6] * x[:6] / Q @ a * (KEEP[:, 6:] / Q)
    for logits, one in (
        (hidden @ b, x[:6] @ a @ b),
        (KEEP * x / Q @ torch.ones(UNITS, 3).double(), x.sum() * torch.ones(3).double()),
    ):
        assert close(means(logits)[1], one.softmax(-1))
    assert not close(means(hidden @ b)[0], (x[:6] @ a @ b).softmax(-1), 1e-3)  # the arithmetic mean is another


def test_weight_scaling_is_exact_before_the_last_layer_alone(x):
    w = torch.randn(UNITS, 3, dtype=torch.float64)
    h = torch.relu(x)  # a nonlinearity before dropout does no harm
    arithmetic, geometric = means(KEEP * h / Q @ w)
    assert close(geometric, (h @ w).softmax(-1))
    assert not close(arithmetic, (h @ w).softmax(-1), 1e-3)  # the other mean
    assert not close(means(KEEP * h @ w)[1], (h @ w).softmax(-1), 1e-3)  # without the scale


def test_weight_scaling_fails_behind_a_nonlinearity_and_with_a_mask_used_twice(x):
    w = torch.randn(UNITS, 3, dtype=torch.float64)
    bent = torch.relu(KEEP * x / Q @ torch.eye(UNITS).double() - 0.3) @ w
    assert not close(means(bent)[1], (torch.relu(x - 0.3) @ w).softmax(-1), 1e-3)
    twice = KEEP / Q * (KEEP * x / Q) @ w
    assert not close(means(twice)[1], (x @ w).softmax(-1), 1e-3)


# 3: dropout as L2


@pytest.fixture
def regression():
    x = torch.randn(20, UNITS, dtype=torch.float64) * torch.linspace(0.5, 3, UNITS)
    return x, x @ torch.randn(UNITS).double() + torch.randn(20).double()


def dropped_loss(x, y, w):
    return mean((y - (KEEP[:, None] * x / Q) @ w).square().sum(1))


def test_dropout_on_inputs_is_data_scaled_ridge(regression):
    x, y = regression
    found = puredrop.explain.ridge(x, y, P)
    for w in (torch.randn(UNITS).double(), found.weights[:, 0]):
        assert close(dropped_loss(x, y, w), found.expected_loss(w[:, None]))
    plain = (y - x @ w).square().sum() + RHO * x.square().sum() / UNITS * w.square().sum()  # one strength for all
    assert not close(dropped_loss(x, y, w), plain, 1e-3)


def test_the_gradient_vanishes_at_the_ridge_solution(regression):
    x, y = regression
    slope = torch.func.grad(lambda w: dropped_loss(x, y, w))
    found = puredrop.explain.ridge(x, y, P)
    size = float((x.T @ y).abs().max())
    assert float(slope(found.weights[:, 0]).abs().max()) <= 1e-10 * size
    assert float(slope(found.plain[:, 0]).abs().max()) > 1e-3 * size
    assert float(slope(puredrop.explain.ridge(x, y, 0.5).weights[:, 0]).abs().max()) > 1e-3 * size


def test_predictions_do_not_change_when_a_column_is_rescaled(regression):
    x, y = regression
    scale = torch.ones(UNITS).double()
    scale[2] = 50
    same = [puredrop.explain.ridge(one, y, P) for one in (x, x * scale)]
    assert close(x @ same[0].weights, (x * scale) @ same[1].weights, 1e-9)

    def plain(x):
        return x @ torch.linalg.solve(x.T @ x + 10 * torch.eye(UNITS), x.T @ y)

    assert not close(plain(x), plain(x * scale), 1e-3)


def test_sgd_with_dropout_lands_on_the_ridge_solution(regression):
    x, y = regression
    found = puredrop.explain.ridge(x[:, :4], y, 0.5)
    path = found.descend(30_000)
    assert path.to_ridge[-1] < 0.05 < 3 * 0.05 < path.to_plain[-1]
    assert close(path.weights, found.weights, 0.1)


def softplus_gap(z, terms):
    return mean(F.softplus(KEEP @ terms / Q)) - F.softplus(z)


def test_the_glm_penalty_is_positive_and_quadratic_at_small_margins(x):
    for size, close_to in ((0.1, 0.02), (6.0, None)):
        terms = size * x.abs() / x.abs().sum()
        z = terms.sum()
        truth = softplus_gap(z, terms)
        slope = torch.sigmoid(z)
        quadratic = 0.5 * RHO * slope * (1 - slope) * terms.square().sum()
        assert float(truth) >= 0
        if close_to is not None:
            assert abs(float(quadratic / truth) - 1) < close_to
            assert abs(float(2 * quadratic / truth) - 1) > close_to  # without the half
        else:
            assert float(quadratic / truth) < 0.9


def test_the_glm_penalty_of_several_classes_has_the_curvature_of_the_softmax(x):
    w = 0.02 * torch.randn(UNITS, 4, dtype=torch.float64)
    truth = mean((KEEP * x / Q @ w).logsumexp(1)) - (x @ w).logsumexp(0)
    shares = (x @ w).softmax(0)

    def quadratic(curvature):
        return 0.5 * RHO * torch.einsum("j,jc,cd,jd->", x.square(), w, curvature, w)

    assert float(truth) >= 0
    assert abs(float(quadratic(shares.diag() - shares.outer(shares)) / truth) - 1) < 0.02
    assert abs(float(quadratic(shares.diag()) / truth) - 1) > 0.1  # without what classes have in common


def test_margins_are_the_enumeration():
    rows, w = torch.rand(5, UNITS).double() + 0.1, torch.randn(UNITS).double()
    found = puredrop.explain.margins(rows, w, P, (2.0,))
    terms = rows * w
    terms = 2 * terms / terms.sum(1, keepdim=True).abs()
    assert close(found.truth[0], torch.stack([softplus_gap(one.sum(), one) for one in terms]).mean())


# 4: the explicit regulariser of a deep net


def test_squared_loss_at_the_last_layer_is_exact():
    h, w, y = torch.randn(UNITS).double(), torch.randn(3, UNITS).double(), torch.randn(3).double()
    truth = mean((y - KEEP * h / Q @ w.T).square().sum(1)) - (y - w @ h).square().sum()
    assert close(truth, RHO * (w.square().sum(0) * h.square()).sum())
    assert not close(truth, RHO * (w.sum(0).square() * h.square()).sum(), 1e-3)


def curvature(pi):
    return pi.diag() - torch.outer(pi, pi)


def root_of(pi):
    return pi.sqrt().diag() - torch.outer(pi, pi.sqrt())


def test_the_root_of_the_softmax_curvature():
    pi = torch.randn(5).double().softmax(0)
    assert close(root_of(pi) @ root_of(pi).T, curvature(pi))
    assert not close(root_of(pi).T @ root_of(pi), curvature(pi), 1e-3)
    z = pi.log()
    assert close(torch.func.hessian(lambda z: F.cross_entropy(z, torch.tensor(1)))(z), curvature(pi))


def test_one_product_with_signs_is_unbiased_for_gauss_newton():
    """Over all 2^5 signs its mean is the trace, and over all labels that of a sampled label's gradient."""
    pi, jacobian, h = torch.randn(5).double().softmax(0), torch.randn(5, UNITS).double(), torch.randn(UNITS).double()
    truth = 0.5 * RHO * ((jacobian.T @ curvature(pi) @ jacobian).diagonal() * h.square()).sum()
    signs = 2 * ((torch.arange(32)[:, None] >> torch.arange(5)) & 1).double() - 1
    values = 0.5 * RHO * ((signs @ root_of(pi).T @ jacobian) * h).square().sum(1)
    assert close(values.mean(), truth)
    wrong = 0.5 * RHO * ((signs * pi.sqrt() @ jacobian) * h).square().sum(1)  # without the second part of the root
    assert not close(wrong.mean(), truth, 1e-3)
    labels = 0.5 * RHO * (((torch.eye(5) - pi) @ jacobian) * h).square().sum(1)
    assert close((pi * labels).sum(), truth)


def small_net():
    net = torch.nn.Sequential(
        torch.nn.Linear(4, UNITS), torch.nn.Tanh(), torch.nn.Dropout(P), torch.nn.Linear(UNITS, 3)
    )
    return net.double(), torch.randn(6, 4).double(), torch.randint(3, (6,))


def test_the_gradient_noise_of_masks_is_first_order():
    """Tr Cov of the gradient over masks against ρ Σ_j ‖∇_θ(h_j ∂ℓ/∂h_j)‖², at small p, where first order is all."""
    net, x, y = small_net()
    first, last = net[0], net[3]

    def slope(mask):
        params = list(net.parameters())
        loss = F.cross_entropy(last(torch.tanh(first(x[:1])) * mask), y[:1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])

    p = 1e-3
    weights = chances(p=p)
    likely = weights > 1e-12
    gradients = torch.stack([slope(keep / (1 - p)) for keep in KEEP[likely]])
    own = weights[likely] / weights[likely].sum()
    center = own @ gradients
    truth = own @ (gradients - center).square().sum(1)

    mask = torch.ones(UNITS, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(last(torch.tanh(first(x[:1])) * mask), y[:1])
    (by_unit,) = torch.autograd.grad(loss, mask, create_graph=True)
    parts = [torch.autograd.grad(one, list(net.parameters()), retain_graph=True) for one in by_unit]
    predicted = p / (1 - p) * sum(g.square().sum() for part in parts for g in part)
    assert float(predicted / truth) == pytest.approx(1, abs=0.15)
    assert float(p * predicted / truth) < 0.5


def test_averaging_masks_divides_the_noise(x):
    y = KEEP[:64] * x[0]
    two = (y[:, None] + y[None]).flatten(0, 1) / 2
    assert close(two.var(0, correction=0), y.var(0, correction=0) / 2)
    assert not close(two.var(0, correction=0), y.var(0, correction=0) / 4, 1e-3)


# 5: variants


def test_gaussian_noise_has_the_same_two_moments():
    x = torch.full((400_000,), 2.0, dtype=torch.float64)
    y = puredrop.functional.gaussian_dropout(x, P, key=Key(1))
    error = 2 * math.sqrt(RHO / len(x))
    assert abs(float(y.mean()) - 2) < 5 * error
    assert abs(float(y.var()) - 4 * RHO) < 5 * 4 * RHO * math.sqrt(2 / len(x))
    assert abs(float(y.var()) - 4 * P) > 5 * 4 * RHO * math.sqrt(2 / len(x))


def test_alpha_dropout_keeps_mean_0_and_variance_1_only():
    alpha, kept = 1.7580993408473766, torch.tensor([Q, P], dtype=torch.float64)
    a = (Q + alpha**2 * P * Q) ** -0.5
    b = a * P * alpha

    def moments(m, v):
        first = torch.tensor([m, -alpha], dtype=torch.float64)
        second = torch.tensor([m**2 + v, alpha**2], dtype=torch.float64)
        center = a * (kept @ first) + b
        return float(center), float(a**2 * (kept @ second) + 2 * a * b * (kept @ first) + b**2 - center**2)

    assert moments(0.0, 1.0) == pytest.approx((0, 1), abs=1e-12)
    assert moments(1.0, 1.0) != pytest.approx((1, 1), abs=1e-2)
    values = torch.randn(400_000, dtype=torch.float64)
    y = puredrop.functional.alpha_dropout(values, P, True, key=Key(2))
    keep = puredrop.keep_mask((400_000,), P, Key(2))
    assert close(y, a * torch.where(keep, values, torch.tensor(-alpha).double()) + b, 1e-6)


def test_the_variance_shift_behind_dropout_and_behind_a_weight():
    h = torch.randn(500, UNITS).double() * torch.linspace(0.5, 2, UNITS) + torch.linspace(-1, 1, UNITS)
    c, v = h.mean(0), h.var(0, correction=0)
    dropped = KEEP[:, None] * h / Q
    second = mean(dropped.square()).mean(0)
    assert close(second - mean(dropped).mean(0).square(), (c.square() + v) / Q - c.square())
    assert not close(second - c.square(), v / Q, 1e-3)  # only without a mean
    w = torch.randn(UNITS).double()
    sigma, through = torch.cov(h.T, correction=0), dropped @ w
    train = mean(through.square()).mean() - mean(through).mean().square()
    said = w @ sigma @ w + RHO * (w.square() * (sigma.diagonal() + c.square())).sum()
    assert close(train, said)
    assert not close(train, w @ sigma @ w / Q, 1e-3)


# 9: co-adaptation


def test_the_first_order_share_of_a_sum_is_1_and_that_of_a_product_is_less(x):
    def share(f):
        factors = (KEEP - Q) / math.sqrt(P * Q)
        away = f - mean(f)
        covariance = mean(factors * away[:, None])
        return float(covariance.square().sum() / variance(f))

    assert share(KEEP @ x) == pytest.approx(1, abs=1e-12)
    pair = KEEP[:, 0] * KEEP[:, 1]
    assert share(pair) == pytest.approx(2 * Q**3 * P / (Q**2 * (1 - Q**2)), abs=1e-12)
    assert share(pair) < 0.95
