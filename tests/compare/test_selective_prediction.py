"""The error on the rows that a predictor is surest of, and the interval of the area under it."""

import numpy as np
import pytest
import torch

from puredrop.compare.evaluation import COVERAGES, selective_prediction
from puredrop.ensemble import risk_coverage


def rows(random, seeds=3, count=80):
    uncertainty = random.gamma(1.0, 1.0, (seeds, count))
    return uncertainty, (random.random((seeds, count)) < uncertainty / 4).astype(float)


def area(uncertainty, losses):
    return np.mean(np.cumsum(losses[uncertainty.argsort()]) / np.arange(1, len(uncertainty) + 1))


def test_the_curve_is_the_mean_loss_of_the_surest_rows():
    uncertainty, losses = rows(np.random.default_rng(0))
    found = selective_prediction(uncertainty, losses)
    assert found.risk.shape == (3, len(COVERAGES))
    for seed in range(3):
        surest = losses[seed][uncertainty[seed].argsort()]
        expected = [surest[: round(share * 80)].mean() for share in COVERAGES]
        np.testing.assert_allclose(found.risk[seed], expected)
        assert found.area[seed].mean() == pytest.approx(area(uncertainty[seed], losses[seed]))


def test_values_of_rows_are_the_jackknifes():
    uncertainty, losses = rows(np.random.default_rng(1), 1, 40)
    whole = area(uncertainty[0], losses[0])
    left = [area(np.delete(uncertainty[0], i), np.delete(losses[0], i)) for i in range(40)]
    pseudo = 40 * whole - 39 * np.array(left)
    np.testing.assert_allclose(selective_prediction(uncertainty, losses).area[0], pseudo - pseudo.mean() + whole)


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_their_variance_is_that_of_the_area(least):
    """2000 samples of rows: the deviation of a standard deviation is 1.6 %, so 5 sigma is 8 %."""
    uncertainty, losses = rows(np.random.default_rng(2), 2000, 150)
    losses += least
    found = selective_prediction(uncertainty, losses).area
    deviation = found.mean(1).std(ddof=1)
    assert np.sqrt((found.var(1, ddof=1) / 150).mean()) == pytest.approx(deviation, rel=0.08)
    # Each loss times its weight, as if ranks were not of the rows themselves, is far off where all rows lose.
    weights = np.cumsum(1 / np.arange(150, 0, -1.0))[::-1]
    naive = (np.take_along_axis(losses, uncertainty.argsort(1), 1) * weights).var(1, ddof=1) / 150
    assert (np.sqrt(naive.mean()) > 2 * deviation) == (least == 1.0)


def test_rows_of_one_doubt_share_their_losses():
    uncertainty, losses = np.array([[1.0, 1.0, 0.0, 1.0]]), np.array([[0.0, 3.0, 0.0, 0.0]])
    expected = risk_coverage(torch.tensor(uncertainty[0]), torch.tensor(losses[0])).area
    assert selective_prediction(uncertainty, losses).area.mean() == pytest.approx(expected)
    assert expected == pytest.approx(np.mean([0, 0.5, 2 / 3, 0.75]))
