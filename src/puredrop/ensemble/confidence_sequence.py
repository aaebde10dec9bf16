"""A confidence interval that holds at every number of samples at once, so that one may stop when one likes."""

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
        """The next independent values, (samples, ...), in their order."""
        for value in values.double():
            self._one(value)

    def _one(self, value: Tensor) -> None:
        if self._count == 0:
            self._total = torch.full_like(value, 0.5)
            self._spread = torch.full_like(value, 0.25)
            self._bets, self._wagers, self._slack = (torch.zeros_like(value) for _ in range(3))
            self.lower, self.upper = torch.zeros_like(value), torch.ones_like(value)
        self._count += 1
        t = self._count
        before, variance = self._total / t, self._spread / t  # of the values before this one
        bet = (2 * self._log / (variance * t * math.log1p(t))).sqrt().clamp_max(0.5)
        self._slack += 4 * (value - before).square() * (-torch.log1p(-bet) - bet) / 4
        self._bets += bet
        self._wagers += bet * value
        self._total += value
        self._spread += (value - self._total / (t + 1)).square()
        centre, half = self._wagers / self._bets, (self._log + self._slack) / self._bets
        # An interval that holds at all times is one that their intersection holds, too.
        self.lower, self.upper = torch.maximum(self.lower, centre - half), torch.minimum(self.upper, centre + half)

    def chosen(self, which: Tensor) -> None:
        """Go on with some of the means, along the first dimension."""
        for name in ("_total", "_spread", "_bets", "_wagers", "_slack", "lower", "upper"):
            setattr(self, name, getattr(self, name)[which])


def expected_members(tolerance: float, alpha: float, variance: float, most: int = 10**6) -> int:
    """About how many samples make half an interval as short as a tolerance.

    Args:
        tolerance: of a mean of numbers in [0, 1].
        alpha: as of `Sequence`.
        variance: of the numbers.
        most: look no further.
    """
    log, count, bets, slack, size = math.log(2 / alpha), 0, 0.0, 0.0, 1 << 12
    while count < most:
        t = torch.arange(count + 1, count + size + 1, dtype=torch.float64)
        spread = (0.25 + variance * (t - 1)) / t
        bet = (2 * log / (spread * t * torch.log1p(t))).sqrt().clamp_max(0.5)
        all_bets = bets + bet.cumsum(0)
        all_slack = slack + (variance * (-torch.log1p(-bet) - bet)).cumsum(0)
        short = ((log + all_slack) / all_bets <= tolerance).nonzero()
        if len(short):
            return count + int(short[0]) + 1
        bets, slack, count = float(all_bets[-1]), float(all_slack[-1]), count + size
    return most
