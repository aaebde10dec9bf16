import numpy as np
import pytest

from puredrop.report.intervals import paired_difference


def crossed(rng, seeds, rows, seed_sd, row_sd, rest_sd, mean=0.0):
    a, b = rng.normal(0, seed_sd, (seeds, 1)), rng.normal(0, row_sd, (1, rows))
    return mean + a + b + rng.normal(0, rest_sd, (seeds, rows))


@pytest.mark.parametrize(("seed_sd", "row_sd", "rest_sd"), [(1, 4, 3), (1, 0, 1), (0, 3, 1), (0.3, 3, 10)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seed_sd, row_sd, rest_sd):
    # 2 000 runs at 95 %: a correct interval falls below 93 % once in 25 000 seeds; never more than conservative.
    rng = np.random.default_rng(1)
    intervals = [paired_difference(crossed(rng, 10, 150, seed_sd, row_sd, rest_sd, mean=2.0)) for _ in range(2000)]
    coverage = np.mean([i.low < 2 < i.high for i in intervals])
    assert 0.93 < coverage < 0.995


def test_ignoring_that_rows_or_seeds_are_shared_would_not_cover():
    # The same runs judged as if all values were independent: the test above can fail.
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        table = crossed(rng, 10, 150, 1, 4, 3)
        covered += abs(table.mean()) < 1.96 * table.std() / np.sqrt(table.size)
    assert covered / 500 < 0.7


def test_the_detectable_difference_is_found_eight_times_in_ten():
    # 1 500 runs: 5 sigma is 5 points.
    rng = np.random.default_rng(2)
    size = np.mean([paired_difference(crossed(rng, 10, 100, 1, 2, 2)).detectable for _ in range(100)])
    found = [paired_difference(crossed(rng, 10, 100, 1, 2, 2, mean=size)).excludes_zero for _ in range(1500)]
    assert abs(np.mean(found) - 0.8) < 0.06


def test_two_tables_share_seeds_but_not_rows():
    # A gap: the seeds' part cancels between the tables, so the interval must be narrower than for either alone.
    rng = np.random.default_rng(3)
    a = rng.normal(0, 5, (10, 1))
    test, training = a + rng.normal(0, 1, (10, 200)), a + rng.normal(0, 1, (10, 300))
    gap = paired_difference(test, -training)
    assert gap.standard_error < 0.2 * paired_difference(test).standard_error
    assert gap.estimate == pytest.approx(test.mean() - training.mean())


def test_by_hand():
    table = np.array([[1.0, 2.0], [3.0, 6.0]])
    # means: all 3, seeds 1.5 and 4.5, rows 2 and 4; every residual is 0.5 in size.
    d = paired_difference(table)
    assert d.estimate == 3
    assert d.standard_error**2 == pytest.approx(4.5 / 2 + 2 / 2 - (4 * 0.25) / 1 / 4)
    assert d.low == pytest.approx(6 - d.high)
    assert not d.excludes_zero


def test_no_variance_is_an_exact_answer_and_one_seed_is_none():
    d = paired_difference(np.full((3, 4), 0.5))
    assert (d.estimate, d.low, d.high, d.excludes_zero) == (0.5, 0.5, 0.5, True)
    with pytest.raises(ValueError, match=r"shapes \[\(1, 4\)\]; expected one number >= 2 of seeds"):
        paired_difference(np.ones((1, 4)))
