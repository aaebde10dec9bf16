"""Torch's functional dropout under our operator, model untouched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop import Key
from puredrop.functional import intercept
from puredrop.functional.interception import _READERS, recognise

ELEMENTS = {F.dropout: (5, 6), F.dropout1d: (5, 6, 3), F.dropout2d: (5, 6, 3, 2), F.dropout3d: (5, 6, 3, 2, 2)}


@pytest.mark.parametrize("function", [*ELEMENTS, F.alpha_dropout, F.feature_alpha_dropout], ids=lambda f: f.__name__)
def test_functions_of_torch_nn_functional(function):
    x = torch.randn(ELEMENTS.get(function, (5, 6, 3)))
    name = function.__name__
    expected = getattr(puredrop.functional, name)(x, 0.3, True, key=Key(1).fold_in(name).fold_in(0))
    with intercept(Key(1)):
        assert torch.equal(function(x, 0.3, True), expected)
        assert not torch.equal(function(x, 0.3, True), expected)
        assert torch.equal(function(x, 0.3, training=False), x)
        copy = x.clone()
        assert function(copy, p=0.3, training=True, inplace=True) is copy


@pytest.mark.parametrize("name", ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
def test_functions_of_torch(name):
    x = torch.randn(5, 6, 3)
    with intercept(Key(1)):
        first = getattr(torch, name)(x, 0.3, True)
    with intercept(Key(1)):
        copy = x.clone()
        assert getattr(torch, name + "_")(copy, 0.3, True) is copy
    assert torch.equal(first, copy)
    assert getattr(torch, name)(x, 0.3, False) is not None


def test_attention_and_recurrent_networks_of_torch():
    x = torch.randn(7, 3, 8)
    lstm, attention = nn.LSTM(8, 4, 2, dropout=0.5), nn.MultiheadAttention(8, 2, dropout=0.5)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)

    def run():
        return lstm(x)[0], attention(x, x, x)[0], encoder(x), F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    with intercept(Key(4)):
        first = run()
    torch.rand(5)
    with intercept(Key(4)):
        second = run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with intercept(Key(5)):
        assert not any(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_one_layer_has_nothing_between_layers():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        lstm = nn.LSTM(8, 4, 1, dropout=0.5)
    x = torch.randn(7, 3, 8)
    with intercept(Key(4)):
        torch.testing.assert_close(lstm(x)[0], lstm.eval()(x)[0])


def test_without_a_key_torchs_seed_decides():
    outputs = []
    for _ in range(2):
        torch.manual_seed(4)
        with intercept():
            outputs.append([F.dropout(torch.ones(50), 0.5) for _ in range(2)])
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.equal(outputs[0][0], outputs[0][1])


@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")  # torch 2.6 warns of each break
def test_compiled_code_is_reached_too():
    torch._dynamo.reset()
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), torch.randn(4, 8)
    compiled = torch.compile(net, backend="aot_eager")
    outputs = []
    for run in (compiled, net, compiled):
        with intercept(Key(1)), torch.no_grad():  # the graph breaks at each dropout, and torch warns of gradients there
            outputs.append(run(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[0] == 0, ~puredrop.keep_mask((4, 8), 0.5, Key(1).fold_in("dropout").fold_in(0)))


def test_nothing_else_changes():
    with intercept(Key(1)):
        assert torch.equal(torch.relu(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
    assert recognise(torch.relu, (), {}) is None
    assert recognise([].append, (), {}) is None
    with pytest.raises(TypeError, match=r"key is 3; expected puredrop\.Key"):
        intercept(3)


def test_every_dropout_that_torch_has_is_known():
    """Whatever torch adds to these namespaces under such a name is noticed here."""
    known = {function.__name__ for function in _READERS}
    spared = {
        "native_dropout",  # returns its mask too; what autograd calls, not people
        "_fused_dropout",
        "_cudnn_init_dropout_state",
        "fused_dropout",
    }
    for space in (torch, F):
        names = {n for n in dir(space) if "dropout" in n and callable(getattr(space, n)) and not n.startswith("_")}
        assert names - spared <= known | {"boolean_dispatch"}, names - known
