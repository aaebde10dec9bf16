"""Is a predictor sure where it is right: the error on the rows that it is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from puredrop.compare.tasks import Table
from puredrop.ensemble import risk_coverage

__all__ = ["SHARES", "Rejection", "reject"]

SHARES = tuple(k / 20 for k in range(2, 21))
"""Of rows kept, at which the curve is written down: with fewer than a tenth a row or two decide."""


@dataclass(frozen=True)
class Rejection:
    """The risk-coverage curves of all seeds.

    Args:
        risk: (seeds, len(SHARES)), the mean loss of the surest share of rows.
        area: (seeds, rows), whose mean over rows is the mean risk over all shares, row by row in such a way that its
            variance over rows is that of the area.
    """

    risk: Table
    area: Table


def reject(doubt: Table, losses: Table) -> Rejection:
    """Leave the rows with the most doubt to somebody else, share by share.

    Args:
        doubt: (seeds, rows).
        losses: the same.

    Returns:
        The curves.

    Reference: El-Yaniv and Wiener: On the foundations of noise-free selective classification (JMLR 2010).
    """
    curves = [risk_coverage(*pair) for pair in zip(torch.tensor(doubt), torch.tensor(losses), strict=True)]
    rows = doubt.shape[1]
    at = [max(1, round(share * rows)) - 1 for share in SHARES]
    risk = np.stack([curve.risk.numpy()[at] for curve in curves])
    area = np.stack([_by_row(*one) for one in zip(doubt, losses, strict=True)])
    means = np.array([curve.area for curve in curves])
    return Rejection(risk, area - area.mean(1, keepdims=True) + means[:, None])


def _by_row(doubt: Table, losses: Table) -> Table:
    """The jackknife's pseudo-values of the area: n times it, less n - 1 times the area without the row.

    The area is the mean over rows of loss times a(rank), a(r) = 1/r + ... + 1/n: a row counts in every risk from its
    own rank on. Without it, those behind move up by one rank.

    Reference: Efron and Tibshirani: An introduction to the bootstrap (1993), chapter 11.
    """
    order = doubt.argsort(kind="stable")
    rows, sorted_losses = len(losses), losses[order]
    rank = np.arange(1, rows + 1)
    weight = np.cumsum(1 / rank[::-1])[::-1]
    moved = np.concatenate([sorted_losses[1:] / rank[:-1], [0.0]])  # of each row behind, 1/(rank - 1)
    behind = np.cumsum(moved[::-1])[::-1]
    found = np.empty(rows)
    found[order] = sorted_losses * weight + (losses.sum() - sorted_losses) / rows - behind
    return found
