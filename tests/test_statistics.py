"""Masks of neighbours do not know of each other: sites, steps, calls, samples, channels and rates.

All are seeded by their keys. For each of about 1000 pairs of neighbours z is standard normal if the masks are
independent; a maximum above 5.2 has odds of 1 in 5000, the mean square's bounds are 5 of its standard errors.
"""

import math

import pytest
import torch

from puredrop import Key, Window, keep_mask

N = 2**14
ROOT = Key(7)
NEIGHBOURS = {
    "keys": lambda i: (Key(i), {}),
    "sites": lambda i: (ROOT.fold_in(f"layers.{i}.dropout"), {}),
    "steps": lambda i: (ROOT.fold_in("site").fold_in(i), {}),
    "calls": lambda i: (ROOT.fold_in("site").fold_in(3).fold_in(i), {}),
    "samples": lambda i: (ROOT, {"window": Window((10**6, N), (i, 0))}),
    "far samples": lambda i: (ROOT, {"window": Window((2**40, N), (i << 28, 0))}),
}


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("kind", list(NEIGHBOURS))
def test_neighbours_are_uncorrelated(kind, p):
    masks = []
    for i in range(1000):
        key, where = NEIGHBOURS[kind](i)
        masks.append(keep_mask((1, N), p, key, **where).flatten())
    kept = torch.stack(masks).double()
    z = (kept - (1 - p)) / math.sqrt(p * (1 - p))
    for lag in (1, 2):
        scores = (z[lag:] * z[:-lag]).sum(1) / math.sqrt(N)
        assert scores.abs().max() < 5.2
        assert abs(scores.square().mean() - 1) < 5 * math.sqrt(2 / len(scores))
    assert abs(z.sum()) < 5 * math.sqrt(z.numel())


@pytest.mark.parametrize("stride", [1, 2, 15, 16, 17, 64, 4096])
def test_elements_at_a_distance_are_uncorrelated(stride):
    kept = keep_mask((2**21,), 0.3, Key(11)).double()
    z = (kept - 0.7) / math.sqrt(0.21)
    score = (z[stride:] * z[:-stride]).sum() / math.sqrt(len(z) - stride)
    assert abs(score) < 4.5  # seven strides: 1 in 20 000
