"""The specification against the contract's known answers and its stated properties."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import VECTORS, keeps, philox
from puredrop import Key
from puredrop.ops import Place
from puredrop.ops import _reference as reference

rates = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 2.0**-64, 2.0**-65, 1 - 2.0**-53, 1e-300])


def keep_at(key, index, p):
    _, digits = reference.rate_and_digits(torch.tensor(p, dtype=torch.float64))
    if digits[0] == 256:
        return torch.zeros_like(index, dtype=torch.bool)
    k = Key(key).tensor().item()
    return ~reference._below(
        lambda plane, where: reference.digit(k, index if where is None else index[where], plane), digits
    )


@pytest.mark.parametrize("case", VECTORS["threshold"], ids=lambda case: repr(case["p"]))
def test_thresholds(case):
    assert reference.threshold(case["p"]) == int(case["K"])


@pytest.mark.parametrize("case", VECTORS["digits"], ids=lambda case: case["key"])
def test_digits(case):
    found = reference.digit(Key(int(case["key"])).tensor(), torch.tensor([int(case["index"])]), case["plane"])
    assert found.item() == case["byte"]


@pytest.mark.parametrize("case", VECTORS["keep"], ids=lambda case: f"{case['key']}-{case['p']}")
def test_masks(case):
    if "ties" in case:
        index, expected = torch.tensor(case["ties"]).unbind(1)
    else:
        index = int(case["start"]) + torch.arange(case["count"])
        expected = torch.tensor([int(bit) for bit in case["keep"]])
    assert torch.equal(keep_at(int(case["key"]), index, case["p"]), expected.bool())


@pytest.mark.parametrize("case", VECTORS["index"], ids=lambda case: str(case["shape"]))
def test_logical_indices(case):
    ids = case["sample_ids"] and torch.tensor([int(i) for i in case["sample_ids"]])
    place = Place(case["shared_dims"], case["window_shape"], case["window_offset"], ids, case["sample_dim"])
    index = reference.logical_index(case["shape"], place, torch.device("cpu"))
    assert index.expand(case["shape"]).flatten().tolist() == [int(j) for j in case["logical"]]


@pytest.mark.parametrize("case", VECTORS["values"], ids=lambda case: f"{case['dtype']}-{case['p']}")
def test_values(case):
    dtype = getattr(torch, case["dtype"])
    p = torch.tensor(case["p"], dtype=torch.float64)
    x = torch.full((64,), case["x"], dtype=dtype)
    y = reference.dropout(x, torch.tensor(1), p, Place())
    kept = y[y != 0]
    assert 0 < kept.numel() < 64
    width = torch.int16 if x.element_size() == 2 else torch.int32 if x.element_size() == 4 else torch.int64
    pattern = kept.view(width).unique().item() % 2 ** (8 * x.element_size())
    assert f"{pattern:0{2 * x.element_size()}x}" == case["kept_hex"]


@given(rates)
def test_a_tensor_on_an_accelerator_gives_the_same_digits_and_rate(p):
    # The arithmetic that runs where nothing may synchronise, here on the CPU through a stand-in for the device.
    class Elsewhere:
        device = torch.device("meta")

        def double(self):
            return torch.tensor(p, dtype=torch.float64)

    rate, digits = reference.rate_and_digits(torch.tensor(p, dtype=torch.float64))
    other_rate, others = reference.rate_and_digits(Elsewhere())
    assert other_rate.item() == rate.item()
    assert [int(other) for other in others] == list(digits)
    k = sum(digit * 256 ** (7 - d) for d, digit in enumerate(digits))
    assert k == reference.threshold(p) == round(Fraction(p) * 2**64)
    assert Fraction(rate.item()) == Fraction(k, 2**64)
    if p >= 2**-12:
        assert rate.item() == p


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), rates)
def test_masks_equal_the_oracle_at_any_index(key, start, p):
    index = start + torch.arange(20)
    assert keep_at(key, index, p).tolist() == [keeps(key, start + i, p) for i in range(20)]


def test_indices_beyond_2_63_count_modulo_2_64():
    for j in (2**63, 2**64 - 1, 2**63 + 12345):
        words = philox(7, (j // 16 % 2**32, j // 16 // 2**32, 3, 0))
        expected = b"".join(word.to_bytes(4, "little") for word in words)[j % 16]
        assert reference.digit(7, torch.tensor([j - 2**64]), 3).item() == expected


@pytest.mark.parametrize("digits", [[37, 201], [0, 1], [255, 255], [128, 0], [26, 154]])
def test_the_rate_is_exact_by_enumeration_of_all_two_digit_numbers(digits):
    u0, u1 = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).unbind(1)

    def draw(plane, where):
        u = (u0, u1)[plane]
        return u if where is None else u[where]

    below = reference._below(draw, [*digits, 0, 0, 0, 0, 0, 0])
    assert below.sum().item() == digits[0] * 256 + digits[1]


def test_ties_deeper_than_one_digit_by_enumeration():
    # Eight digits of one bit each: all 256 numbers, and a threshold in the middle of them.
    planes = [torch.arange(256).bitwise_right_shift(7 - d).bitwise_and(1).to(torch.uint8) for d in range(8)]
    for k in (1, 2, 85, 170, 255):
        digits = [k >> (7 - d) & 1 for d in range(8)]
        below = reference._below(lambda plane, where: planes[plane] if where is None else planes[plane][where], digits)
        assert below.sum().item() == k


# Each of the 6 rates fails once in 1.7 million seeds (5 sigma, two-sided); 2^24 draws each.
@pytest.mark.parametrize("p", [0.1, 0.5, 0.3, 0.25, 2.0**-10 + 2.0**-17, 0.999])
def test_the_rate_over_ten_million_draws(p):
    n = 2**24
    rate = torch.tensor(p, dtype=torch.float64)
    y = reference.dropout(torch.ones(n), Key(11).tensor(), rate, Place())
    dropped = n - y.count_nonzero().item()
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_the_dense_comparison_used_where_nothing_may_synchronise_equals_the_sparse_one():
    class Draw:
        """A tensor that says it lives elsewhere."""

        device = torch.device("cuda")

        def __init__(self, data):
            self.data = data

        def __lt__(self, other):
            return self.data < other

        def __eq__(self, other):
            return self.data == other

        __hash__ = None

    index = torch.arange(2**16)
    for p in (0.1, 0.5, 0.267791748046875):
        _, digits = reference.rate_and_digits(torch.tensor(p, dtype=torch.float64))
        dense = reference._below(lambda plane, where: Draw(reference.digit(77, index, plane)), digits)
        assert torch.equal(~dense, keep_at(77, index, p))


@pytest.mark.parametrize("case", VECTORS["normal_words"], ids=lambda case: case["key"])
def test_normal_noise_from_the_contracts_words(case):
    index, words = int(case["index"]), case["words"]
    place = Place((), (2**62,), (index - 1,))
    found = reference.normal(Key(int(case["key"])).tensor(), (6,), place, torch.device("cpu"))
    lane = index % 4
    radius = math.sqrt(-2 * math.log((words[lane & 2] + 1) * 2.0**-32))
    angle = 2 * math.pi * words[(lane & 2) + 1] * 2.0**-32
    assert math.isclose(found[1].item(), radius * (math.sin if lane & 1 else math.cos)(angle), abs_tol=1e-12)


def test_a_run_of_normal_noise_is_its_elements():
    key = Key(3).tensor()
    run = reference.normal(key, (5, 6), Place((1,)), torch.device("cpu"))
    assert run.shape == (5, 1)
    run = reference.normal(key, (7, 6), Place(), torch.device("cpu"))
    ids = torch.tensor([6, 0, 3])
    assert torch.equal(reference.normal(key, (3, 6), Place((), (7, 6), None, ids), torch.device("cpu")), run[ids])
    wide = reference.normal(key, (10**6,), Place(), torch.device("cpu"))
    # Moments of a million: standard errors .001, .0014, .0024, .0098; 5 of each.
    for power, expected, bound in ((1, 0, 0.005), (2, 1, 0.007), (3, 0, 0.02), (4, 3, 0.05)):
        assert abs((wide**power).mean().item() - expected) < bound
    assert abs((wide[:-1] * wide[1:]).mean().item()) < 0.005
