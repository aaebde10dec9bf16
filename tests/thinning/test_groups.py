"""How batches are split."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puredrop.thinning.groups import MAX_GROUPS, MIN_ROWS, Groups, GroupSplit


@given(samples=st.integers(1, 200), groups=st.integers(1, 200))
def test_nearly_equal_groups_that_cover_the_batch(samples, groups):
    groups = min(samples, groups)
    split = GroupSplit(samples, groups)
    sizes = np.bincount(split.group_of, minlength=groups)
    assert sizes.sum() == samples
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() == split.size
    assert [split.group_of.index(g) for g in range(groups)] == split.starts


@given(samples=st.integers(1, 40), groups=st.integers(1, 40))
def test_spread_and_joined(samples, groups):
    split = GroupSplit(samples, min(samples, groups))
    x = torch.randn(samples, 3, requires_grad=True)
    parts = split.spread(x)
    assert parts.shape == (split.groups, split.size, 3)
    for g, start in enumerate(split.starts):
        count = split.group_of.count(g)
        assert torch.equal(parts[g, :count], x[start : start + count])
    back = split.joined(parts * 2)
    assert torch.equal(back, x * 2)
    back.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))  # what fills a group up adds nothing


@pytest.mark.parametrize(
    ("samples", "rows", "count"),
    [
        (1, 1, 1),
        (MIN_ROWS - 1, MIN_ROWS - 1, 1),
        (1024, 1024, 8),
        (100_000, 100_000, MAX_GROUPS),
        (4, 4096, 4),
        (0, 0, 1),
    ],
)
def test_auto(samples, rows, count):
    assert Groups("auto").split(samples, rows).groups == count


@pytest.mark.parametrize(
    ("groups", "error", "says"),
    [
        (0, ValueError, r"groups is 0; expected 1 \(one mask for the whole batch\) or more, or 'auto'"),
        (-3, ValueError, "groups is -3"),
        (2.0, TypeError, "groups is 2.0; expected a positive integer or 'auto'"),
        (True, TypeError, "groups is True"),
        ("many", TypeError, "groups is 'many'"),
    ],
)
def test_no_number_of_groups(groups, error, says):
    with pytest.raises(error, match=says):
        Groups(groups)


def test_a_batch_with_fewer_samples_than_groups_has_one_in_each():
    assert Groups(8).split(5, 5) == GroupSplit(5, 5)
    assert Groups(8).split(0, 0).groups == 1
