import math

import numpy as np
import pytest
import torch
from scipy import stats

from puredrop.compare.tasks import Classification, Regression


def test_classification_judges_the_mean_of_probabilities():
    outputs, y = 3 * torch.randn(4, 2, 30, 5), torch.randint(0, 5, (30,))
    judged = Classification(5).judge(outputs, y, lambda: (outputs, y))
    p = outputs.double().softmax(-1).mean(0).numpy()
    for seed in range(2):
        np.testing.assert_allclose(judged.nll[seed], -np.log(p[seed, np.arange(30), y.numpy()]), rtol=1e-6)
        assert (judged.error[seed] == (p[seed].argmax(1) != y.numpy())).all()
        np.testing.assert_allclose(judged.uncertainty[seed], stats.entropy(p[seed], axis=1))


def test_regression_judges_a_mixture_in_the_targets_unit():
    task = Regression(mean=100.0, scale=7.0)
    outputs, y = torch.randn(3, 2, 40, 1), torch.randn(40)
    validation = torch.randn(3, 2, 500, 1) / 5, torch.randn(500)
    judged = task.judge(outputs, y, lambda: validation)
    widths = task._widths(*validation)
    assert widths.shape == (2, 1)
    target = 100 + 7 * y.double().numpy()
    for seed in range(2):
        members = 100 + 7 * outputs[:, seed, :, 0].double().numpy()
        density = stats.norm.pdf(target, members, 7 * widths[seed].item()).mean(0)
        np.testing.assert_allclose(judged.nll[seed], -np.log(density), rtol=1e-6)
        np.testing.assert_allclose(judged.error[seed], (members.mean(0) - target) ** 2, rtol=1e-5)
        np.testing.assert_allclose(judged.uncertainty[seed], members.var(0, ddof=1), rtol=1e-5)
    assert judged.calibration is None
    assert task.judge(outputs[:1], y, lambda: validation).uncertainty is None


def test_a_class_without_any_probability_is_no_doubt():
    outputs = torch.tensor([[[[0.0, -2000.0, -2000.0], [0.0, 0.0, -2000.0]]]])
    judged = Classification(3).judge(outputs, torch.tensor([0, 1]), lambda: (outputs, torch.zeros(2)))
    np.testing.assert_allclose(judged.uncertainty, [[0.0, math.log(2)]])


def test_the_width_is_the_likeliest_one_and_comes_from_validation_alone():
    y = torch.randn(4000)
    one = (y + 0.5 * torch.randn(4000)).view(1, 1, -1, 1)
    width = Regression(0.0, 1.0)._widths(one, y).item()
    assert width == pytest.approx(0.5, rel=0.05)  # 4 000 residuals: 5 sigma is 5.6 %, the grid 6 %
    judged = Regression(0.0, 1.0).judge(one, y, lambda: (one, y))
    assert judged.nll.mean() == pytest.approx(math.log(width) + 0.5 * math.log(2 * math.pi * math.e), abs=0.06)


def test_the_difference_of_roots_is_exact_per_seed():
    task, before, after = (
        Regression(0.0, 1.0),
        np.random.default_rng(0).gamma(1, 1, (3, 50)),
        np.random.default_rng(1).gamma(2, 1, (3, 50)),
    )
    table = task.error_difference(before, after)
    np.testing.assert_allclose(table.mean(1), np.sqrt(after.mean(1)) - np.sqrt(before.mean(1)))


@pytest.mark.parametrize("task", [Classification(4), Regression(0.0, 2.0)])
def test_losses_have_a_value_per_seed_and_row(task):
    y = torch.randint(0, 4, (9,)) if task.outputs == 4 else torch.randn(9)
    outputs = torch.randn(3, 9, task.outputs)
    loss = task.loss(outputs, y)
    assert loss.shape == (3, 9)
    for seed in range(3):
        one = (
            torch.nn.functional.cross_entropy(outputs[seed], y, reduction="none")
            if task.outputs == 4
            else (outputs[seed, :, 0] - y) ** 2 / 2
        )
        torch.testing.assert_close(loss[seed], one)
        torch.testing.assert_close(task.loss(outputs, y.expand(3, 9))[seed], one)
