"""What torch's layers refuse, ours refuse with the same class; what they compute, ours compute: also of empty inputs.

Every layer is run as torch's, as ours, converted, pinned and under `intercept`, in both modes. The rate is so small
that nothing is dropped.
"""

import copy

import pytest
import torch
from torch import nn

import puredrop
from puredrop.functional import intercept
from test_torch_checks import P, differs, outcome, randn


def attention_calls(batch_first=False, width_of_keys=8):
    """Calls of MultiheadAttention(8, 2) with L = 5, S = 4, N = 3: what they try -> positional and named arguments."""

    def order(length, batch, width=8):
        shape = (batch, length, width) if batch_first else (length, batch, width)
        return randn(*shape)

    q, k = order(5, 3), order(4, 3, width_of_keys)
    v = k.flip(0)
    masks = {
        "padding": {"key_padding_mask": torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()},
        "float padding": {"key_padding_mask": randn(3, 4)},
        "transposed padding": {"key_padding_mask": torch.zeros(4, 3).bool()},
        "padding of the queries": {"key_padding_mask": torch.zeros(3, 5).bool()},
        "padding of another batch": {"key_padding_mask": torch.zeros(1, 4).bool()},
        "integer padding": {"key_padding_mask": torch.zeros(3, 4).long()},
        "byte padding": {"key_padding_mask": torch.zeros(3, 4).byte()},
        "flat padding": {"key_padding_mask": torch.zeros(12).bool()},
        "padding of three dimensions": {"key_padding_mask": torch.zeros(3, 1, 4).bool()},
        "padding of half": {"key_padding_mask": torch.zeros(3, 4).half()},
        "padding a list": {"key_padding_mask": [[False] * 4] * 3},
        "mask": {"attn_mask": torch.ones(5, 4).triu(1).bool()},
        "float mask": {"attn_mask": randn(5, 4)},
        "mask of heads": {"attn_mask": randn(6, 5, 4)},
        "transposed mask": {"attn_mask": torch.zeros(4, 5).bool()},
        "mask of one row": {"attn_mask": torch.zeros(1, 4).bool()},
        "mask of the batch": {"attn_mask": torch.zeros(3, 5, 4).bool()},
        "mask of one head": {"attn_mask": torch.zeros(1, 5, 4).bool()},
        "mask of four dimensions": {"attn_mask": torch.zeros(3, 2, 5, 4).bool()},
        "mask of one dimension": {"attn_mask": torch.zeros(4).bool()},
        "integer mask": {"attn_mask": torch.zeros(5, 4).long()},
        "both masks": {"attn_mask": randn(5, 4), "key_padding_mask": randn(3, 4)},
        "both masks, two types": {"attn_mask": randn(5, 4), "key_padding_mask": torch.zeros(3, 4).bool()},
        "causal without mask": {"is_causal": True},
        "causal": {"is_causal": True, "attn_mask": torch.ones(5, 4).triu(1).bool()},
        "each head's weights": {"average_attn_weights": False},
        "unknown argument": {"mask": None},
    }
    calls = {text: ((q, k, v), named) for text, named in masks.items()}
    inputs = {
        "plain": (q, k, v),
        "value missing": (q, k),
        "another width of queries": (order(5, 3, 6), k, v),
        "another width of keys": (q, order(4, 3, 5), v),
        "another width of values": (q, k, order(4, 3, 5)),
        "another length of values": (q, k, order(6, 3, width_of_keys)),
        "another batch of keys": (q, *2 * [order(4, 2, width_of_keys)]),
        "another batch of values": (q, k, order(4, 2, width_of_keys)),
        "one dimension": (q[0, 0], q[0, 0], q[0, 0]),
        "four dimensions": (q[None], k[None], v[None]),
        "query without a batch": (q[:, 0], k, v),
        "keys without a batch": (q, k[:, 0], v[:, 0]),
        "without a batch": (q[:, 0], k[:, 0], v[:, 0]),
        "float64": (q.double(), k.double(), v.double()),
        "integers": (q.long(), k.long(), v.long()),
        "query a list": ([1.0], k, v),
        "query None": (None, k, v),
        "empty batch": (order(5, 0), *2 * [order(4, 0, width_of_keys)]),
        "no queries": (order(0, 3), k, v),
        "no keys": (q, *2 * [order(0, 3, width_of_keys)]),
        "nothing": (order(0, 0), *2 * [order(0, 0, width_of_keys)]),
        "nothing, without a batch": (randn(0, 8), *2 * [randn(0, width_of_keys)]),
        "no queries, without a batch": (randn(0, 8), *2 * [randn(4, width_of_keys)]),
        "no width": (order(5, 3, 0), order(4, 3, 0), order(4, 3, 0)),
    }
    calls |= {text: (tensors, {}) for text, tensors in inputs.items()}
    single = (randn(5, 8), *2 * [randn(4, width_of_keys)])
    calls |= {
        f"{text}, without a batch": (single, named)
        for text, named in {
            "padding": {"key_padding_mask": torch.tensor([False, False, True, False])},
            "padding of two dimensions": {"key_padding_mask": torch.zeros(1, 4).bool()},
            "padding of the queries": {"key_padding_mask": torch.zeros(5).bool()},
            "mask of heads": {"attn_mask": randn(2, 5, 4)},
            "mask of other heads": {"attn_mask": randn(3, 5, 4)},
            "transposed mask": {"attn_mask": torch.zeros(4, 5).bool()},
        }.items()
    }
    # Without weights torch stumbles here: it views an empty mask with a -1.
    calls["padding of an empty batch"] = (
        (order(5, 0), *2 * [order(4, 0, width_of_keys)]),
        {"key_padding_mask": torch.zeros(0, 4).bool()},
    )
    less = {f"{text}, no weights": (a, {**named, "need_weights": False}) for text, (a, named) in calls.items()}
    less.pop("padding of an empty batch, no weights")
    return calls | less


def recurrent_calls(batch_first=False, states=1):
    """Calls of a recurrent network (6, 4, 2) for T = 5, N = 3."""

    def order(length, batch, width=6):
        return randn(*((batch, length, width) if batch_first else (length, batch, width)))

    def state(batch, width=4, layers=2):
        h = randn(layers, batch, width)
        return h if states == 1 else (h, h.flip(0))

    x = order(5, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2], batch_first)
    return {
        "plain": (x,),
        "state": (x, state(3)),
        "without a batch": (x[:, 0],),
        "packed": (packed,),
        "another width": (order(5, 3, 7),),
        "one dimension": (x[0, 0],),
        "four dimensions": (x[None],),
        "state of another batch": (x, state(2)),
        "state of another width": (x, state(3, 5)),
        "state of other layers": (x, state(3, 4, 3)),
        "state of the other kind": (x, (state(3), state(3)) if states == 1 else state(3)[0]),
        "state without a batch": (x, state(3)[0] if states == 1 else tuple(s[0] for s in state(3))),
        "float64": (x.double(),),
        "integers": (x.long(),),
        "a list": ([1.0],),
        "None": (None,),
        "nothing": (),
        "empty batch": (order(5, 0),),
        "no steps": (order(0, 3),),
    }


def encoder_calls(batch_first=False):
    def order(length, batch, width=8):
        return randn(*((batch, length, width) if batch_first else (length, batch, width)))

    x = order(5, 3)
    padding = torch.zeros(3, 5).bool()
    padding[0, 3:] = True
    name = {"padding": "src_key_padding_mask", "mask": "src_mask"}
    return {
        "plain": ((x,), {}),
        "padding": ((x,), {name["padding"]: padding}),
        "transposed padding": ((x,), {name["padding"]: padding.T}),
        "integer padding": ((x,), {name["padding"]: padding.long()}),
        "transposed mask": ((x,), {name["mask"]: torch.zeros(4, 5).bool()}),
        "mask": ((x,), {name["mask"]: torch.ones(5, 5).triu(1).bool()}),
        "another width": ((order(5, 3, 7),), {}),
        "four dimensions": ((x[None],), {}),
        "one dimension": ((x[0, 0],), {}),
        "without a batch": ((x[:, 0],), {}),
        "integers": ((x.long(),), {}),
        "None": ((None,), {}),
        "empty batch": ((order(5, 0),), {}),
        "no tokens": ((order(0, 3),), {}),
        "nothing": ((order(0, 0),), {}),
    }


def decoder_calls(batch_first=False):
    def order(length, batch, width=8):
        return randn(*((batch, length, width) if batch_first else (length, batch, width)))

    x, memory = order(5, 3), order(4, 3)
    return {
        "plain": ((x, memory), {}),
        "padding": ((x, memory), {"memory_key_padding_mask": torch.tensor([[0, 0, 0, 1]] * 3).bool()}),
        "transposed padding": ((x, memory), {"memory_key_padding_mask": torch.zeros(4, 3).bool()}),
        "transposed padding of the target": ((x, memory), {"tgt_key_padding_mask": torch.zeros(5, 3).bool()}),
        "mask": ((x, memory), {"tgt_mask": torch.ones(5, 5).triu(1).bool()}),
        "transposed mask": ((x, memory), {"memory_mask": torch.zeros(4, 5).bool()}),
        "another width": ((x, order(4, 3, 7)), {}),
        "another batch": ((x, order(4, 2)), {}),
        "no memory": ((x,), {}),
        "empty batch": ((order(5, 0), order(4, 0)), {}),
        "no target": ((order(0, 3), memory), {}),
        "empty memory": ((x, order(0, 3)), {}),
        "nothing": ((order(0, 0), order(0, 0)), {}),
    }


def dropout_calls():
    """Calls of a dropout layer, with inputs of which the first dimension holds the samples."""
    inputs = {f"rank {rank}": randn(*[4, 2, 3, 2, 2, 2][:rank]) for rank in range(1, 7)}
    inputs |= {f"empty {shape}": torch.ones(shape) for shape in ((0,), (0, 3), (2, 0), (0, 3, 4), (2, 3, 0, 4))}
    inputs |= {str(kind): randn(4, 2, 3).to(kind) for kind in (torch.int64, torch.bool, torch.half)}
    inputs["permuted"] = randn(3, 2, 4).permute(2, 1, 0)
    return {text: ((x,), {}) for text, x in inputs.items()}


def without_names(calls):
    return {text: (arguments, {}) for text, arguments in calls.items()}


def transformer(**named):
    return nn.Transformer(8, 2, 1, 1, 16, dropout=P, **named)


ENCODER, DECODER = (8, 2, 16, P), (8, 2, 16, P)
FIRST = {"batch_first": True}
DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
CASES = {
    **{name: (lambda n, name=name: getattr(n, name)(P), dropout_calls()) for name in DROPOUTS},
    "MultiheadAttention": (lambda n: n.MultiheadAttention(8, 2, dropout=P), attention_calls()),
    "MultiheadAttention, batch first": (
        lambda n: n.MultiheadAttention(8, 2, dropout=P, **FIRST),
        attention_calls(batch_first=True),
    ),
    "MultiheadAttention, appended keys": (
        lambda n: n.MultiheadAttention(8, 2, dropout=P, add_bias_kv=True, add_zero_attn=True),
        attention_calls(),
    ),
    "MultiheadAttention, other widths": (
        lambda n: n.MultiheadAttention(8, 2, dropout=P, kdim=6, vdim=6, bias=False),
        attention_calls(width_of_keys=6),
    ),
    "LSTM": (lambda n: n.LSTM(6, 4, 2, dropout=P), without_names(recurrent_calls(states=2))),
    "GRU": (lambda n: n.GRU(6, 4, 2, dropout=P, **FIRST), without_names(recurrent_calls(batch_first=True))),
    "RNN": (lambda n: n.RNN(6, 4, 2, dropout=P), without_names(recurrent_calls())),
    "TransformerEncoderLayer": (lambda n: nn.TransformerEncoderLayer(*ENCODER), encoder_calls()),
    "TransformerEncoderLayer, batch first": (
        lambda n: nn.TransformerEncoderLayer(*ENCODER, norm_first=True, **FIRST),
        encoder_calls(batch_first=True),
    ),
    "TransformerEncoder": (
        lambda n: nn.TransformerEncoder(nn.TransformerEncoderLayer(*ENCODER, **FIRST), 2, enable_nested_tensor=False),
        {k.replace("src_mask", "mask"): v for k, v in encoder_calls(batch_first=True).items()},
    ),
    "TransformerDecoderLayer": (lambda n: nn.TransformerDecoderLayer(*DECODER), decoder_calls()),
    "TransformerDecoder": (
        lambda n: nn.TransformerDecoder(nn.TransformerDecoderLayer(*DECODER, **FIRST), 2),
        decoder_calls(batch_first=True),
    ),
    "Transformer": (lambda n: transformer(), decoder_calls()),
    "Transformer, batch first": (lambda n: transformer(**FIRST), decoder_calls(batch_first=True)),
}


def dim_of_samples(name):
    return (
        0 if "first" in name or name in DROPOUTS or name in ("GRU", "TransformerEncoder", "TransformerDecoder") else 1
    )


def ways(name, theirs):
    """The same layer by every way to our operator: name of the way -> function of a call."""
    make, _ = CASES[name]
    ours = make(puredrop.nn)
    ours.load_state_dict(theirs.state_dict())
    converted, pinned = puredrop.convert(copy.deepcopy(theirs)), copy.deepcopy(theirs)

    def run_pinned(*arguments, **named):
        with puredrop.reproducible(pinned, seed=1, sample_dim=dim_of_samples(name)):
            return pinned(*arguments, **named)

    def intercepted(*arguments, **named):
        with intercept():
            return theirs(*arguments, **named)

    return {
        "layer": (ours, ours),
        "convert": (converted, converted),
        "pinned": (pinned, run_pinned),
        "intercept": (theirs, intercepted),
    }


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_layers(name, training):
    make, calls = CASES[name]
    theirs, found = make(torch.nn).train(training), {}
    for way, (module, run) in ways(name, theirs).items():
        module.train(training)
        for text, (arguments, named) in calls.items():
            expected = outcome(lambda a=arguments, n=named: theirs(*a, **n))
            words = differs(outcome(lambda a=arguments, n=named, run=run: run(*a, **n)), expected)
            if words:
                found[way, text] = words
    assert found == {}


def made(kind, sizes, named):
    kind(*sizes, **named)


SIZES = {"MultiheadAttention": (8, 2), "LSTM": (6, 4, 2), "GRU": (6, 4, 2), "RNN": (6, 4, 2)}


@pytest.mark.parametrize("name", [*DROPOUTS, *SIZES])
def test_constructors(name):
    """Deliberate differences: NaN and a rate that is no number are refused at once, with one class for all layers."""
    rate, sizes = ("dropout", SIZES[name]) if name in SIZES else ("p", ())
    rates = [0, 1, 0.5] if name == "MultiheadAttention" else [0, 1, 0.5, 1.5, -0.1]
    rates += [] if name in SIZES else [True, "0.5", None, [0.5], 1j]
    found = {}
    for named in [*({rate: value} for value in rates), {"drop": 0.5}]:
        theirs, ours = (outcome(lambda n=n, k=named: made(getattr(n, name), sizes, k)) for n in (torch.nn, puredrop.nn))
        if words := differs(ours, theirs):
            found[str(named)] = words
    assert found == {}
