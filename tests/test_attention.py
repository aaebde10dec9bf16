"""Attention and recurrent networks: torch's own values where nothing is dropped, our masks where something is.

At a rate of 1e-15 our code runs in full and drops none of these elements, so that it must equal torch's without dropout.
"""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import puredrop
from puredrop import Key
from puredrop.functional import scaled_dot_product_attention

NEXT_TO_NONE = 1e-15


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTM projected", "RNN relu", "LSTM unbatched"])
def test_recurrent_networks_equal_torchs(kind, bidirectional, batch_first, packed):
    name, *rest = kind.split()
    named = {"projected": {"proj_size": 3}, "relu": {"nonlinearity": "relu"}}.get(rest[0] if rest else "", {})
    named |= {"dropout": NEXT_TO_NONE, "bidirectional": bidirectional, "batch_first": batch_first}
    ours = getattr(puredrop.nn, name)(5, 4, 3, key=Key(1), **named)
    theirs = getattr(nn, name)(5, 4, 3, **named)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 5) if rest == ["unbatched"] else torch.randn(7, 2, 5)
    if packed:
        x = pack_sequence([torch.randn(7, 5), torch.randn(4, 5)])
    (a, a_state), (b, b_state) = ours(x), theirs.eval()(x)
    torch.testing.assert_close(a.data, b.data)
    torch.testing.assert_close(a_state, b_state)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_dropout_between_layers_is_the_keys(kind, packed):
    net = getattr(puredrop.nn, kind)(5, 4, 2, dropout=0.5, key=Key(1))
    x = pack_sequence([torch.randn(7, 5), torch.randn(4, 5)]) if packed else torch.randn(7, 2, 5)
    one, again = net(x)[0], net(x)[0]
    assert torch.equal(getattr(one, "data", one), getattr(again, "data", again))
    net.set_key(Key(2))
    other = net(x)[0]
    assert not torch.equal(getattr(one, "data", one), getattr(other, "data", other))


FLAGS = (
    "bias_kv",
    "zero",
    "kdim",
    "batch_first",
    "weights",
    "each_head",
    "unbatched",
    "padding",
    "mask",
    "float_masks",
)


@pytest.mark.parametrize("flags", list(itertools.product(*[[False, True]] * 3)), ids=str)
def test_multi_head_attention_equals_torchs(flags):
    torch.manual_seed(0)
    for rest in itertools.product(*[[False, True]] * 7):
        on = dict(zip(FLAGS, flags + rest, strict=True))
        sizes = {"kdim": 6, "vdim": 7} if on["kdim"] else {}
        arguments = {"add_bias_kv": on["bias_kv"], "add_zero_attn": on["zero"], "batch_first": on["batch_first"]}
        ours = puredrop.nn.MultiheadAttention(8, 2, dropout=NEXT_TO_NONE, key=Key(1), **arguments, **sizes)
        theirs = nn.MultiheadAttention(8, 2, **arguments, **sizes)
        theirs.load_state_dict(ours.state_dict())
        batch = [] if on["unbatched"] else [3]
        q, k, v = (
            torch.randn(n, *batch, size) for n, size in ((4, 8), (5, sizes.get("kdim", 8)), (5, sizes.get("vdim", 8)))
        )
        if on["batch_first"] and batch:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        padding = torch.tensor([0, 0, 0, 1, 1]).bool().expand(*batch, 5) if on["padding"] else None
        mask = (torch.rand(4, 5) > 0.7) & (torch.arange(5) > 0) if on["mask"] else None
        if on["mask"] and on["each_head"]:
            mask = mask.expand(2 * (batch or [1])[0], 4, 5)
        if on["float_masks"]:
            padding, mask = (None if t is None else torch.zeros(t.shape).masked_fill(t, -1.5) for t in (padding, mask))
        named = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": on["weights"]}
        named["average_attn_weights"] = not on["each_head"]
        (a, a_weights), (b, b_weights) = ours(q, k, v, **named), theirs(q, k, v, **named)
        torch.testing.assert_close(a, b)
        assert (a_weights is None) == (b_weights is None)
        if a_weights is not None:
            torch.testing.assert_close(a_weights, b_weights)


@pytest.mark.parametrize(
    "named",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "bool"}, {"attn_mask": "float"}, {"attn_mask": "blind"}],
    ids=str,
)
def test_scaled_dot_product_attention_equals_torchs(named):
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 3)
    masks = {
        "bool": torch.rand(5, 6) > 0.5,
        "float": torch.randn(5, 6),
        "blind": (torch.arange(5) > 0)[:, None].expand(5, 6),
    }
    named = {name: masks.get(value, value) if isinstance(value, str) else value for name, value in named.items()}
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **named)
    found = scaled_dot_product_attention(q, k, v, dropout_p=NEXT_TO_NONE, enable_gqa=True, **named)
    torch.testing.assert_close(found, expected)
    assert torch.equal(scaled_dot_product_attention(q, k, v, enable_gqa=True, **named), expected)


def test_the_weights_are_dropped_by_our_mask():
    q, k, v = (torch.randn(2, 3, 4, 8) for _ in range(3))
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    expected = puredrop.functional.dropout(weights, 0.4, key=Key(6)) @ v
    found = scaled_dot_product_attention(q, k, v, dropout_p=0.4, dropout_key=Key(6))
    torch.testing.assert_close(found, expected)
    layer = puredrop.nn.MultiheadAttention(6, 2, dropout=0.5, key=Key(2))
    x = torch.randn(4, 3, 6)
    _, seen = layer(x, x, x, average_attn_weights=False)
    assert torch.equal(seen == 0, ~puredrop.keep_mask((3, 2, 4, 4), 0.5, Key(2)))
    torch.testing.assert_close(layer(x, x, x, need_weights=False)[0], layer(x, x, x)[0])


def test_no_mask_is_kept_for_backward():
    saved = []
    q, k, v = (torch.randn(1, 2, 64, 8, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    large = [t for t in saved if t.numel() >= 2 * 64 * 64]
    assert [t.dtype for t in large] == [torch.float32] * len(large)
    assert len({t.data_ptr() for t in large}) == 2  # the weights and the dropped ones


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (5, 5)])
def test_a_causal_bias_masks_as_in_torch(sizes):
    from torch.nn.attention.bias import causal_lower_right, causal_upper_left

    queries, keys = sizes
    q, k, v = torch.randn(2, 3, queries, 8), torch.randn(2, 3, keys, 8), torch.randn(2, 3, keys, 8)
    for make, diagonal in ((causal_upper_left, 0), (causal_lower_right, keys - queries)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows without a key, which torch's fast kernels fill with NaN
            bias = make(*sizes)
        mask = torch.ones(sizes, dtype=torch.bool).tril(diagonal)
        for rate in (NEXT_TO_NONE, 0.5):
            found = scaled_dot_product_attention(q, k, v, bias, rate, dropout_key=Key(3))
            assert type(found) is torch.Tensor
            torch.testing.assert_close(found, scaled_dot_product_attention(q, k, v, mask, rate, dropout_key=Key(3)))
        torch.testing.assert_close(
            scaled_dot_product_attention(q, k, v, bias, NEXT_TO_NONE), F.scaled_dot_product_attention(q, k, v, mask)
        )
        with puredrop.functional.intercept(Key(5)):
            found = F.scaled_dot_product_attention(q, k, v, bias, NEXT_TO_NONE)
        torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, mask))
        with pytest.raises(ValueError, match="is_causal is True and attn_mask is a CausalBias"):
            scaled_dot_product_attention(q, k, v, bias, 0.5, True)


def test_bad_input_is_named():
    q = torch.randn(1, 1, 3, 4)
    torchs_words = "is_causal is True and attn_mask is given: Explicit attn_mask should not be set when is_causal=True"
    with pytest.raises(RuntimeError, match=torchs_words):
        scaled_dot_product_attention(q, q, q, torch.zeros(3, 3), 0.5, True)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got 2"):
        scaled_dot_product_attention(q, q, q, dropout_p=2)
    layer = puredrop.nn.MultiheadAttention(4, 1, dropout=0.5)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        layer(q[0], q[0], q[0], is_causal=True)
