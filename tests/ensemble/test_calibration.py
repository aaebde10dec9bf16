"""Calibration, selective prediction, conformal sets and acquisition, on rows whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

import puredrop
from puredrop.ensemble import (
    conformal_intervals,
    conformal_sets,
    fit_temperature,
    reliability,
    risk_coverage,
)


def drawn(rows, heat, seed=0):
    """Probabilities that are too sure by a power, and labels drawn from the right ones."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 4, generator=random, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=random).squeeze(1)
    return (heat * logits).softmax(1), labels


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_most_likely_one(heat):
    probabilities, labels = drawn(20_000, heat)
    found = fit_temperature(probabilities, labels)
    assert abs(math.log(found.value / heat)) < 0.05

    def loss(temperature):
        return -torch.log_softmax(probabilities.log() / temperature, 1)[torch.arange(len(labels)), labels].mean().item()

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-6})
    assert abs(found.nll_after - best.fun) < 1e-9
    assert found.nll_before == pytest.approx(loss(1.0))
    torch.testing.assert_close(found(probabilities), (probabilities.log() / found.value).softmax(1))


def test_reliability_is_torchmetrics():
    probabilities, labels = drawn(5000, 2.0)
    found = reliability(probabilities, labels, bins=15)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15)
    assert found.error == pytest.approx(float(expected), abs=1e-6)
    assert found.count.sum() == 5000
    top, label = probabilities.max(1)
    inside = (top >= 14 / 15) & (top <= 1)
    assert found.accuracy[14] == pytest.approx(float((label == labels)[inside].double().mean()))


def test_risk_and_coverage_by_hand():
    found = risk_coverage([0.3, 0.1, 0.2, 0.2], [1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(found.coverage, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.risk, torch.tensor([0.0, 0.25, 1 / 3, 0.5], dtype=torch.float64))
    assert found.area == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)
    with pytest.raises(ValueError, match=r"uncertainty has shape \(2,\), losses \(3,\)"):
        risk_coverage([1.0, 2.0], [1.0, 2.0, 3.0])


def test_conformal_sets_hold_the_truth_as_often_as_they_say():
    """400 splits of 200 + 100 rows; mean coverage lies in [1 - alpha, 1 - alpha + 1/201] but for 5 standard errors."""
    covered = []
    for seed in range(400):
        probabilities, labels = drawn(300, 3.0, seed)
        sets = conformal_sets(probabilities[:200], labels[:200], probabilities[200:], alpha=0.1)
        covered.append(sets[torch.arange(100), labels[200:]].double().mean().item())
    error = np.std(covered) / 20
    assert 0.9 - 5 * error < np.mean(covered) < 0.9 + 1 / 201 + 5 * error
    assert error < 0.003
    few = conformal_sets(probabilities[:5], labels[:5], probabilities[200:], alpha=0.1)
    assert few.all(), "five rows cannot promise 90 %: every class is in"


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 1))


def test_conformal_intervals_hold_the_truth_as_often_as_they_say():
    """200 splits of 100 + 50 rows, 5 standard errors; wider where members differ more."""
    model, covered = net(), []
    x = 3 * torch.randn(30_000, 1)
    prediction = puredrop.DropoutEnsemble(model, "regression").predict(x, members=16, keep=0)
    y = torch.sin(x) + 0.3 * x.abs() * torch.randn_like(x)
    for split in torch.arange(30_000).view(200, 150):
        known, new = prediction.rows(split[:100]), prediction.rows(split[100:])
        ends = conformal_intervals(known, y[split[:100]], new, alpha=0.2)
        truth = y[split[100:]]
        covered.append(((ends[..., 0] <= truth) & (truth <= ends[..., 1])).double().mean().item())
    error = np.std(covered) / math.sqrt(200)
    assert 0.8 - 5 * error < np.mean(covered) < 0.8 + 1 / 101 + 5 * error
    width = ends[..., 1] - ends[..., 0]
    torch.testing.assert_close(width / width.max(), (new.variance.sqrt() / new.variance.sqrt().max()))


def test_acquisition_takes_the_rows_that_members_disagree_about():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    x = torch.randn(40, 2) * torch.linspace(0.1, 5, 40)[:, None]
    ensemble = puredrop.DropoutEnsemble(model)
    prediction = ensemble.predict(x)
    for by, score in (("bald", prediction.mutual_information), ("entropy", prediction.entropy)):
        assert ensemble.acquire(x, k=5, by=by).tolist() == score.argsort(descending=True)[:5].tolist()
    assert ensemble.acquire(x, k=5).tolist() == ensemble.acquire(x, k=5, by="bald").tolist()
    regression = puredrop.DropoutEnsemble(net(), "regression")
    rows = torch.linspace(-3, 3, 9)[:, None]
    assert regression.acquire(rows, k=1, by="variance")[0] == regression.predict(rows).variance.argmax()
    for k, by, message in (
        (0, "bald", "k is 0"),
        (41, "bald", "k is 41; expected 1 to 40"),
        (1, "best", "by is 'best'"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.acquire(x, k=k, by=by)
    with pytest.raises(ValueError, match="for a regression pass by='variance'"):
        regression.acquire(rows, k=1)


def test_bad_labels():
    probabilities, labels = drawn(10, 1.0)
    with pytest.raises(ValueError, match=r"y has labels 1 to 9; expected 0 to 3"):
        fit_temperature(probabilities, torch.tensor([1, 9] * 5))
    with pytest.raises(ValueError, match=r"y has shape \(10,\), dtype torch.float64; expected integer labels"):
        reliability(probabilities, labels.double())
    with pytest.raises(ValueError, match=r"expected probabilities \(rows, classes\)"):
        fit_temperature(probabilities[0], labels)
    with pytest.raises(ValueError, match="alpha is 1"):
        conformal_sets(probabilities, labels, probabilities, alpha=1)
