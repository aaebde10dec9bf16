"""Intervals for paired differences on crossed seeds and rows; errors of what was computed from groups."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Difference", "jackknife_error", "paired_difference"]

_LEVEL, _POWER = 0.95, 0.80


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval, in the unit of what was measured.

    Args:
        estimate: mean difference.
        standard_error: of the estimate, over new seeds and new rows.
        degrees_of_freedom: of the interval's t distribution (Satterthwaite).
        low, high: ends of the 95 % interval.
        detectable: the true difference that these seeds and rows would show 8 times in 10.
    """

    estimate: float
    standard_error: float
    degrees_of_freedom: float
    low: float
    high: float
    detectable: float

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval excludes 0; nothing else is called a difference."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | bool]:
        """Return the fields for JSON, with whether 0 is excluded as "found"."""
        return {**asdict(self), "found": self.excludes_zero}


def paired_difference(*tables: NDArray[np.float64]) -> Difference:
    """Return the sum of the tables' means, with an interval for other seeds and other rows.

    Each value is a paired difference d[seed, row] = mean + a[seed] + b[row] + rest. All seeds met the same rows and
    all rows the same seeds, so values that share either are not independent; taking them as such would make the
    interval several times too narrow. The variance of the mean is estimated by the analysis of variance of this
    crossed model: V = MS_seeds + MS_rows - MS_rest, each mean square as a variance of the mean.

    Args:
        tables: float64 (seeds, rows); the seeds are the same in all of them, the rows are different ones (test rows
            and training rows, say, for the difference of a gap).

    Returns:
        The difference.

    Raises:
        ValueError: with fewer than two seeds or rows, where there is no variance to see.

    Reference: Owen: The pigeonhole bootstrap (Annals of Applied Statistics 2007); Searle et al.: Variance
    components (1992), two-way crossed model.
    """
    from scipy import stats  # of the extra `study`, which only intervals need

    seeds = tables[0].shape[0]
    if seeds < 2 or any(table.shape[0] != seeds or table.shape[1] < 2 for table in tables):
        raise ValueError(
            f"tables have shapes {[t.shape for t in tables]}; expected one number >= 2 of seeds, rows >= 2"
        )
    estimate = float(sum(table.mean() for table in tables))
    per_seed = np.sum([table.mean(axis=1) for table in tables], axis=0)
    components = [(float(per_seed.var(ddof=1)) / seeds, seeds - 1)]
    rest = 0.0
    for table in tables:
        rows = table.shape[1]
        components.append((float(table.mean(axis=0).var(ddof=1)) / rows, rows - 1))
        residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        rest += float(np.square(residual).sum()) / ((seeds - 1) * (rows - 1)) / (seeds * rows)
    # Never below the larger part alone: the subtraction may overshoot where one factor has no variance.
    total = max(sum(part for part, _ in components) - rest, *(part for part, _ in components))
    spread = sum(part**2 / df for part, df in components)
    df = total**2 / spread if spread > 0 else float(seeds - 1)
    error = float(np.sqrt(total))
    reach = float(stats.t.ppf(0.5 + _LEVEL / 2, df)) * error
    power = float(stats.t.ppf(_POWER, df)) * error
    return Difference(estimate, error, df, estimate - reach, estimate + reach, reach + power)


def jackknife_error(without: Tensor) -> Tensor:
    """Return the standard error of an estimate from its values without each of the groups in turn.

    Args:
        without: (groups, ...).

    Returns:
        (...), one error for each number of the estimate.

    Reference: Efron and Tibshirani: An introduction to the bootstrap (1993), chapter 11.
    """
    groups = len(without)
    return ((groups - 1) / groups * (without - without.mean(0)).square().sum(0)).sqrt()
