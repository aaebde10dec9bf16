"""Statistics of ensembles against their formulas, written a second time in plain Python."""

import math
import random

import pytest
import torch

from puredrop.ensemble import conformal_sets
from puredrop.ensemble.confidence_sequence import ConfidenceSequence


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
    values = [generator.choice((0.0, 1.0)) for _ in range(120)]  # so varied that the bets fall below their limit of 1/2
    sequence = ConfidenceSequence(alpha)
    for value, (lower, upper) in zip(values, intervals_by_the_paper(values, alpha), strict=True):
        sequence.add(torch.tensor([[value]]))
        assert sequence.lower.item() == pytest.approx(lower, abs=1e-6)
        assert sequence.upper.item() == pytest.approx(upper, abs=1e-6)
    assert sequence.upper.item() - sequence.lower.item() < 0.6


def test_one_row_in_ten_may_be_missed_unless_it_is_said():
    generator = torch.Generator().manual_seed(1)
    known, new = (torch.rand(300, 4, generator=generator).softmax(1) for _ in range(2))
    y = torch.randint(4, (300,), generator=generator)
    assert torch.equal(conformal_sets(known, y, new), conformal_sets(known, y, new, alpha=0.1))
    assert not torch.equal(conformal_sets(known, y, new), conformal_sets(known, y, new, alpha=0.3))
