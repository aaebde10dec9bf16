"""What a mask depends on, and what a caller is told."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from oracles import FLOATS, keeps, logical, same_bits
from puredrop import Key, Window, keep_mask
from puredrop.functional import dropout
from puredrop.ops import _reference

KEY = Key(2**63 + 5)
keys = st.integers(0, 2**64 - 1).map(Key)
rates = st.floats(0, 1) | st.sampled_from([0.5, 0.25, 1.0, 0.0])
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(keys, rates, shapes, st.data())
def test_masks_equal_the_oracle_in_every_index_form(key, p, shape, data):
    shared = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    offset = tuple(data.draw(st.integers(0, 2**20)) for _ in shape)
    whole = tuple(o + s + data.draw(st.integers(0, 3)) for o, s in zip(offset, shape, strict=True))
    window, ids, dim = (whole, offset), None, 0
    if 0 not in shared and data.draw(st.booleans()):
        ids = data.draw(st.lists(st.integers(0, 2**30), min_size=shape[0], max_size=shape[0]))
        window = (whole, (0, *offset[1:]))
    if math.prod(s for d, s in enumerate(whole) if d not in shared) >= 2**62:
        return
    place = {"shared_dims": shared, "window": Window(*window), "sample_dim": dim}
    if ids is not None:
        place["sample_ids"] = torch.tensor(ids)
        if (2**30 + 1) * math.prod(whole[1:]) >= 2**62:
            return
    mask = keep_mask(shape, p, key, **place)
    index = logical(shape, shared, window, ids, dim)
    assert mask.flatten().tolist() == [keeps(int(key), j, p) for j in index]


@given(keys, rates, rates, shapes)
def test_masks_are_nested(key, p1, p2, shape):
    low, high = sorted((p1, p2))
    assert not (keep_mask(shape, high, key) & ~keep_mask(shape, low, key)).any()


@given(keys, rates, shapes, st.data())
def test_every_way_of_cutting_a_tensor_into_windows_gives_the_same_mask(key, p, shape, data):
    whole = keep_mask(shape, p, key)
    pieces = [()]
    for size in shape:
        cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))})
        pieces = [(*piece, ends) for piece in pieces for ends in itertools.pairwise(cuts)]
    joined = torch.zeros(shape, dtype=torch.int8)
    for piece in pieces:
        at = tuple(slice(*ends) for ends in piece)
        part = keep_mask([b - a for a, b in piece], p, key, window=Window(shape, [a for a, _ in piece]))
        joined[at] += part.to(torch.int8) + 10
    assert torch.equal(joined - 10, whole.to(torch.int8))


@given(keys, st.permutations(range(7)))
def test_a_mask_follows_its_sample_through_any_order(key, order):
    whole = keep_mask((7, 20), 0.5, key)
    assert torch.equal(keep_mask((7, 20), 0.5, key, sample_ids=torch.tensor(order)), whole[list(order)])


@given(keys, st.sampled_from(FLOATS), st.floats(0, 1), st.sampled_from(range(6)))
def test_strides_memory_format_and_dtype_do_not_matter(key, dtype, p, layout):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(dtype)
    expected = dropout(x, p, key=key)
    other = [
        lambda: x.to(memory_format=torch.channels_last),
        lambda: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        lambda: torch.stack([x, x], -1)[..., 1],
        lambda: x.flip(1).contiguous().flip(1),
        lambda: x.repeat(1, 2, 1, 1)[:, 3:],
        lambda: torch.as_strided(torch.cat([x.flatten()[:1], x.flatten()]), x.shape, x.stride(), 1),
    ][layout]()
    assert torch.equal(other, x)
    assert same_bits(dropout(other, p, key=key), expected)
    if 0 < p < 1:
        kept = keep_mask(x.shape, p, key)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.tensor(1 / (1 - p), dtype=torch.float64).to(wide)
        assert same_bits(expected, torch.where(kept, (x.to(wide) * scale).to(dtype), torch.zeros((), dtype=dtype)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_expectation_is_the_input(p):
    # 64 elements over 20 000 keys: each mean within 5 sigma; one seed in 27 000 fails by chance.
    x = torch.randn(64, dtype=torch.float64)
    runs = 20_000
    y = dropout(x.expand(runs, 64), p, key=KEY).mean(0)
    assert ((y - x).abs() < 5 * x.abs() * math.sqrt(p / (1 - p) / runs)).all()


@pytest.mark.parametrize("k", [1, 64, 77, 128, 255])
def test_the_expectation_is_exact_by_enumeration_of_first_digits(k, monkeypatch, use):
    use(backend="reference")
    # Every first digit once: the mean over all of them is the expectation, and it is x itself.
    every = torch.arange(256).to(torch.uint8)
    monkeypatch.setattr(_reference, "_digit_of_run", lambda key, count, plane, device: every)
    x = torch.randn((), dtype=torch.float64)
    y = dropout(x.expand(256), k / 256, key=KEY)
    assert (y == 0).sum() == k
    assert y.mean().item() == pytest.approx(x.item(), rel=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_dropped_nan_or_inf_is_plus_zero_and_a_kept_one_stays(dtype, p):
    poison = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0], dtype=dtype).repeat(50)
    y = dropout(poison, p, key=KEY)
    kept = keep_mask(poison.shape, p, KEY)
    zeros = torch.zeros((), dtype=dtype).expand(int((~kept).sum()))
    assert same_bits(y[~kept], zeros.contiguous())
    assert (y[kept].isnan() == poison[kept].isnan()).all()
    assert (y[kept].isinf() == poison[kept].isinf()).all()
    assert kept.any() == (p < 1)


def test_subnormals_are_kept():
    tiny = torch.full((100,), 3e-40)
    y = dropout(tiny, 0.25, key=KEY)
    assert (y > 3.9e-40).sum() > 50
    half = torch.full((100,), 6e-8, dtype=torch.float16)
    assert (dropout(half, 0.5, key=KEY) == 2 * half).sum() > 20


def test_p_one_drops_all_forward_and_backward_without_nan():
    x = torch.randn(20, requires_grad=True)
    for p in (1.0, 1, torch.tensor(1.0)):
        y = dropout(x, p)
        assert same_bits(y.detach(), torch.zeros(20))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert same_bits(gradient, torch.zeros(20))


def test_what_returns_the_input_itself_and_draws_nothing():
    x, empty, integers = torch.randn(5), torch.ones(0, 3), torch.arange(4)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(x, 0, inplace=True) is x
    assert dropout(empty, 0.5) is empty
    assert dropout(integers, 0.0) is integers
    assert dropout(integers, 0.5, False) is integers
    assert torch.equal(state, torch.get_rng_state())
    dropout(x, 0.5)
    assert not torch.equal(state, torch.get_rng_state())


def test_inplace_writes_into_the_input_and_gradients_flow():
    x = torch.randn(100)
    expected = dropout(x, 0.5, key=KEY)
    pointer = x.data_ptr()
    y = dropout(x, 0.5, inplace=True, key=KEY)
    assert y is x
    assert y.data_ptr() == pointer
    assert same_bits(x, expected)
    leaf = torch.randn(100, requires_grad=True)
    dropout(leaf * 3, 0.5, inplace=True, key=KEY).sum().backward()
    assert torch.equal(leaf.grad, 3 * dropout(torch.ones(100), 0.5, key=KEY))
    for bad in (torch.ones(3, requires_grad=True), torch.ones(1, 3).expand(2, 3)):
        for ours in (True, False):
            with pytest.raises(RuntimeError, match=r"leaf Variable|single memory location"):
                (dropout if ours else F.dropout)(bad, 0.5, inplace=True)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (17,)])
def test_zero_size_and_0d(shape):
    x = torch.randn(shape)
    assert dropout(x, 0.5).shape == shape
    assert keep_mask(shape, 0.5, KEY).shape == shape
    y = dropout(torch.ones(shape), 0.5, key=KEY)
    assert torch.equal(y != 0, keep_mask(shape, 0.5, KEY))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_output_keeps_the_memory_format(memory_format):
    x = torch.randn(2, 3, 4, 5).to(memory_format=memory_format)
    assert dropout(x, 0.5).is_contiguous(memory_format=memory_format)
    permuted = torch.randn(5, 4, 3).permute(1, 2, 0)
    assert dropout(permuted, 0.5).stride() == permuted.stride() == F.dropout(permuted, 0.5).stride()


def test_integers_and_complex_numbers():
    integers = torch.arange(4)
    assert same_bits(dropout(integers, 1.0), F.dropout(integers, 1.0))
    for function in (dropout, F.dropout):
        with pytest.raises(RuntimeError):
            function(integers, 0.5)
    with pytest.raises(RuntimeError, match=r"dtype torch.int64; expected float16.*input.float\(\)"):
        dropout(integers, 0.5)
    z = torch.randn(30, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"view_as_complex\(dropout\(view_as_real\(input\)"):
        dropout(z, 0.5)
    y = torch.view_as_complex(dropout(torch.view_as_real(z), 0.5, shared_dims=(-1,)))
    assert 0 < y.count_nonzero() < 30
    assert torch.equal(y[y != 0], 2 * z[y != 0])


def test_one_key_gives_one_mask_on_a_shared_dimension():
    y = dropout(torch.ones(4, 6, 5), 0.5, key=KEY, shared_dims=(2,))
    assert (y == y[..., :1]).all()
    assert torch.equal(y[..., 0], dropout(torch.ones(4, 6), 0.5, key=KEY))


ONES = torch.ones(4, 6)
IDS = torch.arange(4)
BAD = [
    ({"p": 1.5}, ValueError, r"between 0 and 1, but got 1.5: p is the share of elements dropped \(for 30 % pass p=0.3"),
    ({"p": -0.1}, ValueError, r"but got -0.1"),
    ({"p": float("nan")}, ValueError, r"but got nan"),
    ({"p": torch.tensor(1.5)}, ValueError, r"but got 1.5"),
    ({"p": torch.tensor(float("nan"))}, ValueError, r"but got nan"),
    ({"p": torch.tensor([0.5])}, ValueError, r"p is a tensor of shape \(1,\); expected a 0-d tensor"),
    ({"p": torch.tensor(1)}, TypeError, r"p is a tensor of dtype torch.int64; expected a floating-point"),
    ({"p": torch.tensor(0.5, requires_grad=True)}, ValueError, r"p requires a gradient.*p.detach\(\)"),
    ({"p": "0.5"}, TypeError, r"p is '0.5'; expected a number in \[0, 1\]"),
    ({"key": 3}, TypeError, r"key is 3; expected puredrop.Key"),
    ({"shared_dims": (2,)}, ValueError, r"shared_dims is 2; expected a dimension of the 2-dimensional input, -2 to 1"),
    ({"shared_dims": (-3,)}, ValueError, r"shared_dims is -3"),
    ({"shared_dims": (1, -1)}, ValueError, r"shared_dims is \(1, -1\); expected each dimension once"),
    ({"shared_dims": 1}, TypeError, r"try shared_dims=\(1,\)"),
    ({"shared_dims": (1.0,)}, TypeError, r"shared_dims is 1.0; expected an integer"),
    ({"window": Window((8, 6), (5, 0))}, ValueError, r"window does not fit along dimension 0: offset 5 and input size 4"),
    ({"window": Window((8,), (0,))}, ValueError, r"window has 1 dimensions, the input 2"),
    ({"window": (8, 6)}, TypeError, r"window is \(8, 6\); expected puredrop.Window"),
    ({"window": Window((2**40, 2**40), (0, 0))}, ValueError, r"expected a logical size below 2\^63, got 1208925819614629174706176"),
    ({"sample_ids": [0, 1, 2, 3]}, TypeError, r"sample_ids is list; expected a torch.int64 tensor"),
    ({"sample_ids": IDS.int()}, TypeError, r"sample_ids has dtype torch.int32; expected torch.int64"),
    ({"sample_ids": IDS[:3]}, ValueError, r"sample_ids has shape \(3,\); expected \(4,\), one id per index along sample_dim=0"),
    ({"sample_ids": IDS - 1}, ValueError, r"sample_ids holds -1; expected no negative id"),
    ({"sample_ids": IDS, "shared_dims": (0,)}, ValueError, r"sample_ids names dimension 0, which shared_dims shares"),
    ({"sample_ids": IDS, "sample_dim": 2}, ValueError, r"sample_dim is 2; expected a dimension"),
    ({"sample_ids": IDS, "window": Window((8, 6), (1, 0))}, ValueError, r"window.offset\[0\] is 1; expected 0 along sample_dim"),
    ({"sample_ids": torch.arange(6) * 2, "sample_dim": 1}, ValueError, r"sample_ids holds 10, dimension 1 has logical size 6"),
    ({"sample_ids": IDS + 2**62}, ValueError, r"expected indices below 2\^63"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        dropout(ONES, **{"key": KEY, **arguments})
    with pytest.raises(error, match=message):  # checked in eval mode too, as torch checks p
        dropout(ONES, **arguments, training=False) if "key" not in arguments else dropout(ONES, **arguments)


def test_bad_inputs_are_named():
    with pytest.raises(TypeError, match=r"input is list; expected a torch.Tensor"):
        dropout([1.0], 0.5)
    with pytest.raises(TypeError, match=r"key is None; expected puredrop.Key"):
        keep_mask((3,), 0.5, None)
    with pytest.raises(TypeError, match=r"^shape is 5; expected a sequence of integers"):
        keep_mask(5, 0.5, KEY)
    with pytest.raises(ValueError, match=r"^shape is \(-1,\); expected no negative entry"):
        keep_mask((-1,), 0.5, KEY)
    with pytest.raises(TypeError, match=r"Window: shape is 8; expected a sequence of integers"):
        Window(8, 0)
    with pytest.raises(ValueError, match=r"Window: offset is \(-1,\); expected no negative entry"):
        Window((8,), (-1,))
    with pytest.raises(ValueError, match=r"offset is \(0,\), shape is \(8, 6\); expected as many entries"):
        Window((8, 6), (0,))
    with pytest.raises(TypeError, match=r"expected integers, got 1.5"):
        Window((1.5,), (0,))


def test_the_same_errors_as_torch_where_torch_raises():
    for p in (1.5, -0.1):
        for function in (dropout, F.dropout):
            with pytest.raises(ValueError, match=f"dropout probability has to be between 0 and 1, but got {p}"):
                function(ONES, p)
