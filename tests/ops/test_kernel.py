"""The compiled library against the reference: every instruction set, dtype, index form and memory layout."""

import functools
import math
import os
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oracles import FLOATS, VECTORS, bits, keeps, same_bits
from puredrop import Key, Window, ops
from puredrop.functional import dropout
from puredrop.ops import Place, _kernel, _reference
from puredrop.rng import fold_in

# The fixture only chooses the instruction set; it need not be set up again for every example.
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
keys = st.integers(0, 2**64 - 1)
# With one digit, two, three and eight; and with 255 or 0 in the first, where every byte or none is below it.
rates = st.floats(0, 1) | st.sampled_from(
    [0.0, 1.0, 0.5, 0.25, 0.1, 257 / 65536, 1 - 2.0**-53, 2.0**-64, 2.0**-65, 255.5 / 256, 1e-300]
)


def poisoned(like, empty_like=torch.empty_like):
    """NaN where the kernel forgets to write."""
    return empty_like(like).fill_(math.nan)


def reference(x, key, p, place):
    return _reference.dropout(x, Key(key).tensor(), torch.tensor(p, dtype=torch.float64), place)


def agrees(x, key, p, place=None):
    place = place or Place()
    with mock.patch.object(torch, "empty_like", poisoned):
        found = _kernel.run(_kernel.DROPOUT, x, key, p, place)
    expected = reference(x, key, p, place)
    assert same_bits(found, expected)
    assert found.stride() == expected.stride()
    return found


@pytest.mark.parametrize("case", VECTORS["keep"], ids=lambda case: f"{case['key']}-{case['p']}")
def test_known_masks(case, variant):
    if "ties" in case:
        index, expected = torch.tensor(case["ties"]).unbind(1)
    else:
        index = int(case["start"]) + torch.arange(case["count"])
        expected = torch.tensor([int(bit) for bit in case["keep"]])
    ids = Place((), (2**62,), None, index)
    kept = _kernel.run(_kernel.DROPOUT, torch.ones(len(index)), int(case["key"]), case["p"], ids)
    assert torch.equal(kept != 0, expected.bool())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_known_keys(backend, use):
    use(backend=backend)
    for case in VECTORS["fold_in"]:
        key, data = Key(int(case["key"])), case["data"] if case["is_text"] else int(case["data"])
        assert int(key.fold_in(data)) == int(case["result"])
        if not case["is_text"]:
            assert fold_in(key.tensor(), int(data)).item() % 2**64 == int(case["result"])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.1, 257 / 65536])
def test_tails_of_every_length_at_every_alignment(dtype, p, variant):
    buffer, expected = tails(dtype, p)
    # Odd starts in memory, and logical starts that are odd to a block, a byte and a chunk.
    with mock.patch.object(torch, "empty_like", poisoned):
        for (length, start), output in zip(TAILS, expected, strict=True):
            x = buffer[length % 5 + 1 :][:length]
            window = Place((), (2**62 + 2**20,), (start,))
            assert same_bits(_kernel.run(_kernel.DROPOUT, x, 7, p, window), output)


TAILS = [(length, start) for length in range(601) for start in (length % 7, 2**62 + 13 * length)]


@functools.cache
def tails(dtype, p):
    """Values, and what the reference makes of each piece of them: all pieces in one call, by their logical indices."""
    buffer = torch.randn(700, generator=torch.Generator().manual_seed(1)).to(dtype)
    pieces = [buffer[length % 5 + 1 :][:length] for length, _ in TAILS]
    indices = torch.cat([torch.arange(start, start + length) for length, start in TAILS])
    output = reference(torch.cat(pieces), 7, p, Place((), (2**62 + 2**20,), None, indices))
    return buffer, output.split([length for length, _ in TAILS])


@anywhere
@given(keys, rates, st.integers(0, 2**62), st.integers(1, 5000), st.sampled_from(FLOATS))
def test_runs_from_anywhere(variant, key, p, start, length, dtype):
    agrees(torch.randn(length).to(dtype), key, p, Place((), (2**62 + 5000,), (start,)))


@pytest.mark.parametrize("p", [0.1, 0.3, 1 / 3, 0.7])
def test_ties_to_the_third_digit(p, variant):
    # 2^20 elements: 4096 tie in the first digit, 16 in the second; the deepest are checked against whole integers too.
    x = torch.ones(2**20)
    kept = agrees(x, 5, p) != 0
    k = round(p * 256 - 0.5)
    tied = (_reference._digit_of_run(5, 2**20, 0, x.device) == k).nonzero().flatten()
    assert 3700 < len(tied) < 4500  # 6 sigma
    for j in tied[:: len(tied) // 50].tolist():
        assert kept[j] == keeps(5, j, p)


def overlaps(x):
    try:
        _kernel.check_overlap(x)
    except RuntimeError:
        return True
    return False


@st.composite
def layouts(draw):
    """A tensor of random dtype, sizes and strides, and where it lies in its logical tensor."""
    dtype = draw(st.sampled_from(FLOATS))
    rank = draw(st.integers(0, 4))
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 40, 65, 130]), min_size=rank, max_size=rank))
    while math.prod(sizes) > 60_000:
        sizes[sizes.index(max(sizes))] = 2
    order = draw(st.permutations(range(rank)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=rank, max_size=rank))
    ones = [draw(st.integers(0, 5)) == 0 for _ in sizes]
    match draw(st.sampled_from(["permuted", "sliced", "stepped", "expanded", "flipped", "overlapping"])):
        case "permuted":
            x = torch.randn(sizes, dtype=dtype).permute(order)
        case "sliced":
            x = torch.randn([size + 3 for size in sizes], dtype=dtype)[tuple(slice(1, 1 + size) for size in sizes)]
        case "stepped":
            wide = torch.randn([size * step for size, step in zip(sizes, steps, strict=True)], dtype=dtype)
            x = wide[tuple(slice(None, None, step) for step in steps)].permute(order)
        case "expanded":
            x = torch.randn([1 if one else size for size, one in zip(sizes, ones, strict=True)], dtype=dtype)
            x = x.expand(sizes)
        case "flipped":
            x = torch.randn(sizes, dtype=dtype).flip(tuple(range(rank)))
        case _:
            x = torch.as_strided(torch.randn(sum(sizes) + 1, dtype=dtype), sizes, [1] * rank)
    shape = tuple(x.shape)
    shared = tuple(d for d in range(rank) if draw(st.integers(0, 3)) == 0)
    free = [d for d in range(rank) if d not in shared]
    if not draw(st.booleans()):
        return x, ops.place_of(shape, shared_dims=shared)
    offset = [draw(st.integers(0, 2**10)) for _ in shape]
    whole = [start + size + draw(st.integers(0, 2**10)) for start, size in zip(offset, shape, strict=True)]
    ids, dim = None, 0
    if free and draw(st.booleans()):
        dim = draw(st.sampled_from(free))
        offset[dim] = 0
        ids = torch.randint(0, whole[dim], (shape[dim],))
    window = Window(tuple(whole), tuple(offset))
    return x, ops.place_of(shape, shared_dims=shared, window=window, sample_ids=ids, sample_dim=dim)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(layouts(), keys, rates)
def test_every_layout_and_index_form(variant, layout, key, p):
    x, place = layout
    expected = agrees(x, key, p, place)
    if not overlaps(x):
        again = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)
        assert same_bits(_kernel.run(_kernel.DROPOUT, again, key, p, place, inplace=True), expected)


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((3, 100, 30, 30), (0, 2, 3, 1)),  # tiles, both sides cut
        ((2, 512, 7, 7), (0, 2, 3, 1)),  # rows that follow each other
        ((2, 3, 300, 17), (0, 2, 3, 1)),  # columns that are one run, broader than a tile
        ((2, 8, 9, 7), (0, 2, 3, 1)),
        ((1, 9, 70, 61), (0, 2, 3, 1)),
        ((2, 16, 30, 11), (0, 2, 3, 1)),
        ((2, 33, 30, 11), (0, 2, 3, 1)),
        ((2, 64, 33, 33), (0, 2, 3, 1)),
        ((700, 300), (1, 0)),
        ((2100, 40), (1, 0)),  # columns higher than a tile
        ((2051, 300), (1, 0)),
        ((3, 12, 50, 40), (0, 2, 1, 3)),  # heads: runs that take turns
        ((33, 65, 130), (2, 0, 1)),
        ((4, 5, 6, 7, 8), (3, 1, 4, 0, 2)),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_memory_order_does_not_matter(shape, order, dtype, variant):
    x = torch.randn(shape).to(dtype)
    permuted = x.permute(order).contiguous().permute([order.index(d) for d in range(len(shape))])
    assert permuted.stride() != x.stride()
    for p in (0.5, 0.1):
        assert same_bits(agrees(permuted, 3, p), agrees(x, 3, p))


def test_special_values(variant):
    for dtype in FLOATS:
        tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
        x = torch.tensor([0.0, -0.0, math.inf, -math.inf, tiny, tiny / 8, huge, -huge], dtype=dtype).repeat(9)
        for p in (0.5, 0.1, 1.0):
            agrees(x, 9, p)
        dropped = dropout(torch.full((40,), math.nan, dtype=dtype), 0.5, key=Key(1))
        assert 5 < (dropped == 0).sum() < 35
        assert dropped.isnan().sum() == (dropped != 0).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_scaled_and_rounded_as_torch_does(dtype, variant):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[~x.isnan()]
    for p in (0.1, 0.3, 0.75):
        agrees(x, 11, p)


def test_in_place_into_overlapping_memory_is_an_error():
    for x in (
        torch.randn(3, 1).expand(3, 4),
        torch.as_strided(torch.randn(6), (4, 3), (1, 1)),
        torch.as_strided(torch.randn(20), (3, 3), (4, 2)),
    ):
        before = x.clone()
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            dropout(x, 0.5, inplace=True)
        assert torch.equal(x, before)
    apart = torch.as_strided(torch.randn(8), (2, 3), (3, 2))  # its dimensions reach into each other and never meet
    expected = dropout(apart.clone(), 0.5, key=Key(2))
    assert dropout(apart, 0.5, inplace=True, key=Key(2)) is apart
    assert torch.equal(apart, expected)


def test_a_lazily_negated_tensor_is_read_as_its_values():
    x = torch.randn(50, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert torch.equal(dropout(x, 0.3, key=Key(1)), dropout(x.clone().resolve_neg(), 0.3, key=Key(1)))


@pytest.mark.skipif("PUREDROP_TEST_LARGE" not in os.environ, reason="12 GB of memory: set PUREDROP_TEST_LARGE=1")
def test_more_than_2_to_the_31_elements():
    x = torch.ones(2**31 + 1000, dtype=torch.bfloat16)
    y = dropout(x, 0.3, key=Key(1), inplace=True)
    tail = dropout(
        torch.ones(2000, dtype=torch.bfloat16), 0.3, key=Key(1), window=Window((2**31 + 1000,), (2**31 - 1000,))
    )
    assert same_bits(y[-2000:], tail)
    assert abs((y[-(2**20) :] == 0).double().mean() - 0.3) < 6 * math.sqrt(0.21 / 2**20)


def test_bits_are_compared_and_not_values():
    assert not torch.equal(bits(torch.tensor([0.0])), bits(torch.tensor([-0.0])))


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("offset", [0, 5])
def test_outputs_large_enough_for_fresh_pages_are_the_parts_put_together(p, offset):
    # From 32 MB on pages are asked for in bulk, and both sides of every piece of them must be right.
    count, key = 2**23 + 1234, Key(4)
    x, logical = torch.randn(count), count + offset
    y = dropout(x, p, key=key, window=Window((logical,), (offset,)))
    step = 10**6 + 7
    parts = [
        dropout(x[at : at + step], p, key=key, window=Window((logical,), (offset + at,)))
        for at in range(0, count, step)
    ]
    assert same_bits(y, torch.cat(parts))
