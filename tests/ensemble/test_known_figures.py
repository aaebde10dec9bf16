"""Statistics of ensembles against their formulas, written a second time in plain Python."""

import math
import random

import pytest
import torch

from puredrop.ensemble import conformal_sets
from puredrop.ensemble.confidence_sequence import ConfidenceSequence
from puredrop.ensemble.running_statistics import RunningStatistics


def intervals_by_the_paper(values, alpha):
    """Theorem 2 of Waudby-Smith and Ramdas, with their predictable bets, number by number."""
    lower, upper, means, bets = 0.0, 1.0, [0.5], []
    spread, slack = 0.25, 0.0
    for t, value in enumerate(values, 1):
        bet = min(math.sqrt(2 * math.log(2 / alpha) / (spread / t * t * math.log(1 + t))), 0.5)
        bets.append(bet)
        slack += 4 * (value - means[-1]) ** 2 * (-math.log(1 - bet) - bet) / 4
        means.append((0.5 + sum(values[:t])) / (t + 1))
        spread += (value - means[-1]) ** 2
        centre = sum(b * x for b, x in zip(bets, values, strict=False)) / sum(bets)
        half = (math.log(2 / alpha) + slack) / sum(bets)
        lower, upper = max(lower, centre - half), min(upper, centre + half)
        yield lower, upper


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_a_confidence_sequence_is_that_of_the_paper(alpha):
    generator = random.Random(3)
    values = [generator.betavariate(2, 5) for _ in range(60)]
    sequence = ConfidenceSequence(alpha)
    for value, (lower, upper) in zip(values, intervals_by_the_paper(values, alpha), strict=True):
        sequence.add(torch.tensor([[value]]))
        assert sequence.lower.item() == pytest.approx(lower, abs=1e-6)
        assert sequence.upper.item() == pytest.approx(upper, abs=1e-6)
    assert sequence.upper.item() - sequence.lower.item() < 0.8


def test_rounding_makes_no_variance_negative():
    """Members that agree have a variance of 0 up to rounding, which unclamped falls below 0 for some of these."""
    value = torch.rand(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for members in range(2, 40):
        running = RunningStatistics(None, balanced=False, kept=0)
        running.add(value.expand(members, 500, 1))
        assert (running.variance >= 0).all()
        assert (running.variance < 1e-30).all()


def test_one_row_in_ten_may_be_missed_unless_it_is_said():
    generator = torch.Generator().manual_seed(1)
    known, new = (torch.rand(300, 4, generator=generator).softmax(1) for _ in range(2))
    y = torch.randint(4, (300,), generator=generator)
    assert torch.equal(conformal_sets(known, y, new), conformal_sets(known, y, new, alpha=0.1))
    assert not torch.equal(conformal_sets(known, y, new), conformal_sets(known, y, new, alpha=0.3))
