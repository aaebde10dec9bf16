"""What torch refuses, ours refuses with the same class; what torch computes, ours computes: wrong and empty arguments.

Every layer and function of ours with a counterpart in torch, by every way to our operator. The rate is so small that
nothing is dropped, so that values can be compared too.
"""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop.functional import intercept

P = 1e-12  # odds of 1 in 10^9 that any of 1000 elements is dropped


def outcome(call):
    """What a call returns, or the class of its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call()
        except Exception as error:
            return type(error)
    return [t.detach() for t in flattened(result)]


def flattened(result):
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data]
    return [t for part in result or () for t in flattened(part)]


def differs(ours, theirs):
    """How two outcomes differ, in a few words, or None."""
    texts = [o.__name__ if isinstance(o, type) else str([tuple(t.shape) for t in o]) for o in (ours, theirs)]
    if texts[0] != texts[1]:
        return f"ours {texts[0]}, torch {texts[1]}"
    try:
        for a, b in () if isinstance(theirs, type) else zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    except AssertionError as error:
        return str(error)
    return None


def differences(calls, *others):
    """Where torch's calls differ from ours, and from themselves once intercepted: what they try -> how."""
    found = {}
    for text, call in calls.items():
        expected = outcome(call)
        answers = [outcome(other[text]) for other in others]
        with intercept():
            answers.append(outcome(call))
        if any(words := [differs(answer, expected) for answer in answers]):
            found[text] = " / ".join(map(str, words))
    return found


def randn(*shape):
    """The same numbers in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def functions_of(lib, name):
    """Calls of a function with wrong or empty arguments, by what they try."""
    function = getattr(lib, name)
    x = randn(4, 6, 5, 3) if name != "dropout1d" else randn(4, 6, 5)
    on = {"training": True} if "alpha" in name else {}
    calls = {
        **{f"p = {p!r}": lambda p=p: function(x, p, **on) for p in (1.5, -0.1, "0.5", None, [0.5], 1j, 0, 1, True)},
        **{f"p = {p!r}, eval": lambda p=p: function(x, p, training=False) for p in (1.5, -0.1, "0.5", None)},
        "p a tensor": lambda: function(x, torch.tensor(P), **on),
        "p of numpy": lambda: function(x, np.float32(P), **on),
        **{f"{t}": lambda t=t: function(x.to(t), 0.5, **on) for t in (torch.int64, torch.bool, torch.uint8)},
        **{f"{t}, p = 1": lambda t=t: function(x.to(t), 1.0, **on) for t in (torch.int64, torch.uint8)},
        **{f"training = {t!r}": lambda t=t: function(x, P, t) for t in ("False", 1, None, torch.tensor(True))},
        "unknown argument": lambda: function(x, P, rate=0.5),
        "no argument": lambda: function(),
    }
    for rank in range(7):
        calls[f"rank {rank}"] = lambda rank=rank: function(torch.ones([2] * rank), P, **on)
        for dim in range(rank):
            shape = [2] * rank
            shape[dim] = 0
            calls[f"empty {shape}"] = lambda shape=shape: function(torch.ones(shape), P, **on)
    return calls


DROPOUTS = ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"]
# Deliberate differences are in docs/torch-surface.md: a NaN rate, a complex input. An input that is no tensor is a
# TypeError everywhere, which `test_inputs_that_are_no_tensors` has.


@pytest.mark.parametrize("name", DROPOUTS)
def test_functions(name):
    assert differences(functions_of(F, name), functions_of(puredrop.functional, name)) == {}


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("wrong", [[1.0], None, 2.0, np.ones(3)], ids=["list", "None", "number", "array"])
def test_inputs_that_are_no_tensors(name, wrong):
    with pytest.raises(TypeError, match=r"input is .*; expected a torch\.Tensor"):
        getattr(puredrop.functional, name)(wrong, 0.5, True)


def builtins_of(name):
    function = getattr(torch, name)
    x = randn(4, 6, 5, 3)
    calls = {
        **{f"p = {p!r}": lambda p=p: function(x.clone(), p, True) for p in (1.5, -0.1, "0.5", None, [0.5], 0, 1)},
        **{f"p = {p!r}, eval": lambda p=p: function(x.clone(), p, False) for p in (1.5, -0.1, "0.5")},
        **{f"{t}": lambda t=t: function(x.to(t), 0.5, True) for t in (torch.int64, torch.bool)},
        **{f"train = {t!r}": lambda t=t: function(x.clone(), P, t) for t in ("False", 1, None)},
        "input list": lambda: function([1.0], 0.5, True),
        "no p": lambda: function(x.clone()),
        "empty": lambda: function(torch.ones(0, 3), P, True),
        "named": lambda: function(input=x.clone(), p=P, train=True),
    }
    for rank in range(5):
        calls[f"rank {rank}"] = lambda rank=rank: function(torch.ones([2] * rank), P, True)
    return calls


@pytest.mark.parametrize("name", ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("suffix", ["", "_"])
def test_builtin_functions(name, suffix):
    assert differences(builtins_of(name + suffix)) == {}


def attentions(function):
    def call(*shapes, dtype=torch.float32, p=P, **named):
        generator = torch.Generator().manual_seed(3)
        q, k, v = (torch.randn(s, generator=generator).to(dtype) for s in (shapes * 3 if len(shapes) == 1 else shapes))
        return function(q, k, v, dropout_p=p, **named)

    shape = (2, 3, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    return {
        "plain": lambda: call(shape),
        "causal": lambda: call(shape, is_causal=True),
        "bool mask": lambda: call(shape, attn_mask=mask),
        "float mask": lambda: call(shape, attn_mask=randn(4, 4)),
        "mask of all": lambda: call(shape, attn_mask=torch.zeros(4, 4, dtype=torch.bool)),
        "mask of batch": lambda: call(shape, attn_mask=randn(2, 1, 1, 4)),
        "mask and causal": lambda: call(shape, attn_mask=mask, is_causal=True),
        "mask of another dtype": lambda: call(shape, attn_mask=mask.long()),
        "mask of float64": lambda: call(shape, attn_mask=randn(4, 4).double()),
        "mask of half": lambda: call(shape, attn_mask=randn(4, 4).half()),
        "mask of another shape": lambda: call(shape, attn_mask=torch.ones(4, 5, dtype=torch.bool)),
        "mask of more dimensions": lambda: call(shape, attn_mask=torch.ones(1, 1, 1, 4, 4, dtype=torch.bool)),
        "mask that enlarges": lambda: call((3, 4, 8), attn_mask=torch.ones(2, 3, 4, 4, dtype=torch.bool)),
        "mask of one dimension": lambda: call(shape, attn_mask=torch.ones(4, dtype=torch.bool)),
        "mask a list": lambda: call(shape, attn_mask=[True]),
        "scale": lambda: call(shape, scale=0.1),
        "scale a text": lambda: call(shape, scale="0.1"),
        "causal a text": lambda: call(shape, is_causal="False"),
        "causal a number": lambda: call(shape, is_causal=1),
        "gqa": lambda: call((2, 6, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8), enable_gqa=True),
        "gqa that does not divide": lambda: call((2, 5, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8), enable_gqa=True),
        "gqa of key and value": lambda: call((2, 6, 4, 8), (2, 3, 4, 8), (2, 2, 4, 8), enable_gqa=True),
        "gqa of two dimensions": lambda: call((4, 8), enable_gqa=True),
        "fewer heads without gqa": lambda: call((2, 6, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8)),
        "one head without gqa": lambda: call((2, 6, 4, 8), (2, 1, 4, 8), (2, 1, 4, 8)),
        "other lengths": lambda: call((2, 3, 5, 8), (2, 3, 4, 8), (2, 3, 4, 8)),
        "other lengths of key and value": lambda: call(shape, (2, 3, 4, 8), (2, 3, 5, 8)),
        "other widths": lambda: call((2, 3, 4, 7), shape, shape),
        "another width of values": lambda: call(shape, shape, (2, 3, 4, 5)),
        **{f"rank {r}": lambda r=r: call([2] * r) for r in range(7)},
        "ranks that differ": lambda: call((4, 8), shape, shape),
        **{f"{t}": lambda t=t: call(shape, dtype=t) for t in (torch.int64, torch.bool, torch.float64)},
        "dtypes that differ": lambda: function(
            torch.ones(shape), torch.ones(shape).double(), torch.ones(shape), dropout_p=P
        ),
        "query a list": lambda: function([1.0], torch.ones(shape), torch.ones(shape), dropout_p=P),
        "key None": lambda: function(torch.ones(shape), None, torch.ones(shape), dropout_p=P),
        **{f"p = {p!r}": lambda p=p: call(shape, p=p) for p in ("0.5", None, [0.5])},  # ours: a ValueError for 1.5
        **{f"empty {s}": lambda s=s: call(s) for s in ((0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0, 8))},
        "no keys": lambda: call(shape, (2, 3, 0, 8), (2, 3, 0, 8)),
        "no queries": lambda: call((2, 3, 0, 8), shape, shape),
        "no width": lambda: call((2, 3, 4, 0)),
        "no width of values": lambda: call(shape, shape, (2, 3, 4, 0)),
    }


def test_attention():
    ours = attentions(puredrop.functional.scaled_dot_product_attention)
    assert differences(attentions(F.scaled_dot_product_attention), ours) == {}
