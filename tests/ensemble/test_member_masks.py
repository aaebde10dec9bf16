"""Masks of members: each alone iid, balanced in blocks, the contract's bits."""

import itertools
import math

import pytest
import torch

import puredrop
from puredrop.members.masks import BLOCK, DrawnMasks, EnumeratedMasks, ranks
from puredrop.members.sites import applied
from puredrop.rng import BALANCED, philox

CPU = torch.device("cpu")


def ranks_by_hand(key, block, unit):
    """One unit's ranks from the text: 16 bits of Philox, domain 3, and arithmetic of the field."""
    words = philox(key, (unit // 8, 0, block, BALANCED))
    bits = words[unit % 8 // 2] >> 16 * (unit % 2) & 0xFFFF
    factor, shift = 1 + (bits >> 4) % 15, bits & 15

    def product(a, b):
        total = 0
        while b:
            total ^= a * (b & 1)
            a, b = (a << 1) ^ (0b10011 if a & 8 else 0), b >> 1
        return total

    return [product(factor, member) ^ shift for member in range(BLOCK)]


def test_ranks_are_what_the_text_says():
    found = ranks(123, [0, 7], 20, offset=5)
    for i, block in enumerate([0, 7]):
        for unit in range(20):
            assert found[i, :, unit].tolist() == ranks_by_hand(123, block, 5 + unit)


def test_ranks_of_a_block_are_a_permutation_for_each_unit():
    found = ranks(5, [0, 1, 2], 500)
    assert (found.sort(1).values == torch.arange(BLOCK)[None, :, None]).all()
    assert not torch.equal(found[0], found[1])


def test_two_members_have_any_two_different_ranks_equally_often():
    """Chi-squared over the 240 ordered pairs, 240 000 units; false alarm 1 in 10^4, three pairs of members."""
    found = ranks(2**63 + 11, [3], 240_000)[0].long()
    for a, b in ((0, 1), (3, 12), (15, 8)):
        counts = torch.bincount(found[a] * BLOCK + found[b], minlength=256).view(BLOCK, BLOCK).double()
        assert counts.diagonal().sum() == 0
        pairs = counts[~torch.eye(BLOCK, dtype=torch.bool)]
        statistic = ((pairs - 1000).square() / 1000).sum()
        assert statistic < 239 + 3.7 * math.sqrt(2 * 239) + 10  # Wilson-Hilferty for 1e-4


@pytest.mark.parametrize("p", [0.5, 0.1, 0.3, 0.0625, 0.97])
def test_a_balanced_member_alone_is_iid_bernoulli(p):
    """Rate, and independence of neighbours, of single members; 6 standard errors, 20 tests: false alarm below 10^-7."""
    n = 200_000
    keep = DrawnMasks(puredrop.Key(1), balanced=True).keep([0, 5, 31, 32], p, n, 0, CPU)
    for one in keep:
        kept = one.double()
        assert abs(kept.mean() - (1 - p)) < 6 * math.sqrt(p * (1 - p) / n)
        both = (kept[1:] * kept[:-1]).mean()
        assert abs(both - (1 - p) ** 2) < 6 * math.sqrt((1 - p) ** 2 / n)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.3])
def test_a_block_is_balanced_and_blocks_are_not(p):
    dropped = ~DrawnMasks(puredrop.Key(1), balanced=True).keep(range(4 * BLOCK), p, 4000, 0, CPU)
    blocks = dropped.view(4, BLOCK, -1).sum(1)
    assert set(blocks.flatten().tolist()) <= {math.floor(16 * p), math.ceil(16 * p)}
    # Of two members of a block fewer units are dropped in both than p^2 of them; of two blocks as many.
    within = (dropped[0] & dropped[1]).double().mean()
    between = (dropped[0] & dropped[17]).double().mean()
    assert within < p * p - 6 * math.sqrt(p * p / 4000) * 0.2
    assert abs(between - p * p) < 6 * math.sqrt(p * p / 4000)


def test_members_do_not_depend_on_which_others_are_drawn_or_where():
    masks = DrawnMasks(puredrop.Key(4), balanced=True)
    whole = masks.keep(range(40), 0.3, 1000, 0, CPU)
    assert torch.equal(masks.keep([39, 2], 0.3, 1000, 0, CPU), whole[[39, 2]])
    assert torch.equal(masks.keep([20], 0.3, 100, 333, CPU), whole[20:21, 333:433])


def test_masks_that_are_not_balanced_are_the_contracts():
    key = puredrop.Key(4)
    keep = DrawnMasks(key, balanced=False).keep([3, 70], 0.3, 50, 7, CPU)
    for row, member in zip(keep, (3, 70), strict=True):
        assert torch.equal(row, puredrop.keep_mask((57,), 0.3, key.fold_in(member))[7:])


def test_listed_masks_are_all_there_are():
    keep = torch.cat(
        [EnumeratedMasks(0).keep(range(8), 0.5, 2, 0, CPU), EnumeratedMasks(2).keep(range(8), 0.5, 1, 0, CPU)], 1
    )
    assert sorted(map(tuple, keep.tolist())) == sorted(itertools.product([False, True], repeat=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("members", [1, 2])
def test_what_is_dropped_without_a_mask_is_what_the_mask_drops(dtype, members):
    """An input that the members have in common, or one for each: it stays as it was."""
    masks, input = DrawnMasks(puredrop.Key(5), balanced=False), torch.randn(members, 500).to(dtype)
    input[:, ::7] = torch.nan
    before = input.clone()
    for offset in (0, 3):
        found = masks.dropped([2, 9], input, 0.3, offset)
        expected = applied(input, masks.keep([2, 9], 0.3, 500, offset, CPU), 0.3)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(input, before, rtol=0, atol=0, equal_nan=True)
    assert DrawnMasks(puredrop.Key(5), balanced=True).dropped([2, 9], input, 0.3, 0) is None
