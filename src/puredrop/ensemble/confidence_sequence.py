"""A confidence interval that holds at all numbers of members at once, so that a run may stop at any of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ConfidenceSequence", "expected_members"]


class ConfidenceSequence:
    """The empirical-Bernstein confidence sequence for the means of numbers in [0, 1].

    Args:
        alpha: the probability that the truth ever leaves an interval is at most this, for each mean by itself.

    Reference: Waudby-Smith and Ramdas: Estimating means of bounded random variables by betting (JRSS B 2024),
        theorem 2.
    """

    def __init__(self, alpha: float) -> None:
        self._log = math.log(2 / alpha)
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Take the next independent values, (values, ...), in their order."""
        for value in values.double():
            self._add_value(value)

    def _add_value(self, value: Tensor) -> None:
        if self._count == 0:
            self._total = torch.full_like(value, 0.5)
            self._spread = torch.full_like(value, 0.25)
            self._bets, self._wagers, self._slack = (torch.zeros_like(value) for _ in range(3))
            self.lower, self.upper = torch.zeros_like(value), torch.ones_like(value)
        self._count += 1
        t = self._count
        before, variance = self._total / t, self._spread / t  # of the values before
        bet = (2 * self._log / (variance * t * math.log1p(t))).sqrt().clamp_max(0.5)
        self._slack += 4 * (value - before).square() * (-torch.log1p(-bet) - bet) / 4
        self._bets += bet
        self._wagers += bet * value
        self._total += value
        self._spread += (value - self._total / (t + 1)).square()
        centre, half = self._wagers / self._bets, (self._log + self._slack) / self._bets
        # All intervals hold at once, so their intersection holds too.
        self.lower, self.upper = torch.maximum(self.lower, centre - half), torch.minimum(self.upper, centre + half)

    def select(self, rows: Tensor) -> None:
        """Go on with some of the means, along the first dimension."""
        for name in ("_total", "_spread", "_bets", "_wagers", "_slack", "lower", "upper"):
            setattr(self, name, getattr(self, name)[rows])


def expected_members(tolerance: float, alpha: float, variance: float, limit: int = 10**6) -> int:
    """Estimate the number of members after which half an interval is as short as a tolerance.

    Args:
        tolerance: half-width of the interval for a mean of numbers in [0, 1].
        alpha: as for `ConfidenceSequence`.
        variance: variance of the numbers.
        limit: the largest number that is tried.
    """
    log, count, bets, slack, size = math.log(2 / alpha), 0, 0.0, 0.0, 1 << 12
    while count < limit:
        t = torch.arange(count + 1, count + size + 1, dtype=torch.float64)
        spread = (0.25 + variance * (t - 1)) / t
        bet = (2 * log / (spread * t * torch.log1p(t))).sqrt().clamp_max(0.5)
        all_bets = bets + bet.cumsum(0)
        all_slack = slack + (variance * (-torch.log1p(-bet) - bet)).cumsum(0)
        short = ((log + all_slack) / all_bets <= tolerance).nonzero()
        if len(short):
            return count + int(short[0]) + 1
        bets, slack, count = float(all_bets[-1]), float(all_slack[-1]), count + size
    return limit
