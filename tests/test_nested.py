"""Nested and jagged tensors: as in torch where nothing is dropped, and for single elements of jagged ones; else refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from oracles import same_bits
from puredrop import Key
from puredrop import functional as ours

LAYOUTS = [torch.jagged, torch.strided]
KEY = Key(5)
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def nested(layout, *lengths, width=8, **options):
    return torch.nested.nested_tensor([torch.randn(length, width) for length in lengths], layout=layout, **options)


def parts(tensor):
    return torch.cat([part.flatten() for part in tensor.unbind()])


FUNCTIONS = {
    "dropout": ours.dropout,
    "shared": lambda *arguments: ours.dropout(*arguments, shared_dims=(1,)),
    "dropout1d": ours.dropout1d,
    "dropout2d": ours.dropout2d,
    "dropout3d": ours.dropout3d,
    "alpha_dropout": ours.alpha_dropout,
    "feature_alpha_dropout": ours.feature_alpha_dropout,
    "gaussian_dropout": ours.gaussian_dropout,
    "drop_path": ours.drop_path,
    "drop_block2d": lambda x, p, training: ours.drop_block2d(x, p, 2, training),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_dropped_passes_and_what_has_no_index_is_refused(name, layout):
    x = nested(layout, 3, 5)
    assert FUNCTIONS[name](x, 0.5, False) is x
    assert FUNCTIONS[name](x, 0.0, True) is x
    if (name, layout) != ("dropout", torch.jagged):
        with pytest.raises(NotImplementedError, match=r"input is a nested tensor of layout torch.*to_padded_tensor"):
            FUNCTIONS[name](x, 0.5, True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_functions(layout):
    x = nested(layout, 3, 5)
    y = x * 2
    for call, expected in (
        (lambda on: ours.relu_dropout(x, 0.5, on), torch.relu(x)),
        (lambda on: ours.gelu_dropout(x, 0.5, on), F.gelu(x)),
        (lambda on: ours.dropout_add(x, y, 0.5, on), x + y),
        (lambda on: ours.bias_dropout_add(x, x, y, 0.5, on), x + x + y),
    ):
        assert same_bits(parts(call(False)), parts(expected))
        with pytest.raises(NotImplementedError, match=r"input is a nested tensor"):
            call(True)


@pytest.mark.parametrize("inplace", [False, True])
def test_elements_of_a_jagged_tensor_are_dropped_as_those_of_its_values(inplace):
    x = nested(torch.jagged, 3, 1, 5)
    expected = ours.dropout(x.values().clone(), 0.5, key=KEY)
    found = puredrop.nn.Dropout(0.5, inplace, key=KEY)(x)
    assert found.layout == torch.jagged
    assert (found is x) == inplace
    assert same_bits(found.values(), expected)
    assert (found + x).shape == x.shape  # one ragged structure, so that residuals can be added
    assert not same_bits(ours.dropout(x, 0.5).values(), ours.dropout(x, 0.5).values())


def test_gradients_of_a_jagged_tensor():
    x = nested(torch.jagged, 3, 5, requires_grad=True)
    y = ours.dropout(x, 0.5, key=KEY)
    y.values().square().sum().backward()
    assert same_bits(x.grad.values(), ours.dropout(2 * y.values().detach(), 0.5, key=KEY))


def test_a_jagged_tensor_with_holes_is_refused():
    x = torch.nested.narrow(torch.randn(2, 9, 8), 1, torch.tensor([0, 2]), torch.tensor([3, 4]), layout=torch.jagged)
    with pytest.raises(NotImplementedError, match=r"jagged tensor that is contiguous"):
        ours.dropout(x, 0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention(layout):
    q = torch.nested.nested_tensor([torch.randn(n, 2, 4) for n in (3, 5)], layout=layout).transpose(1, 2)
    if layout == torch.jagged:
        undropped = ours.scaled_dot_product_attention(q, q, q)
        assert same_bits(parts(undropped), parts(F.scaled_dot_product_attention(q, q, q)))
    with pytest.raises(NotImplementedError, match=r"scaled_dot_product_attention: input is a nested tensor"):
        ours.scaled_dot_product_attention(q, q, q, dropout_p=0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_of_tokens(layout):
    x = nested(layout, 6, 9)
    for layer in (puredrop.nn.PatchDropout(0.5), puredrop.nn.LockedDropout(0.5)):
        assert layer.eval()(x) is x
        with pytest.raises(NotImplementedError, match=r"is a nested tensor"):
            layer.train()(x)


@pytest.mark.parametrize("make", [nn.Dropout, puredrop.nn.Dropout])
def test_pinned_models(make):
    model = nn.Sequential(make(0.5))
    x = nested(torch.jagged, 3, 5)
    with puredrop.reproducible(model, seed=1) as run:
        first = model(x)
        run.step = 0
        assert same_bits(model(x).values(), first.values())
        with pytest.raises(ValueError, match=r"packed sequence, whose rows are no samples"):
            model(x)  # the second forward of a step
        run.step = 0
        with pytest.raises(NotImplementedError, match=r"input is a nested tensor of layout torch.strided"):
            model(nested(torch.strided, 3, 5))
        model.eval()
        y = nested(torch.strided, 3, 5)
        assert same_bits(parts(model(y)), parts(y))
    called = nn.Sequential(OurCall())
    with puredrop.reproducible(called), pytest.raises(NotImplementedError, match=r"use a layer, puredrop.nn.Dropout"):
        called(x)


class OurCall(nn.Module):
    def forward(self, x):
        return ours.dropout(x, 0.5, self.training)


def test_an_encoder_hands_nested_tensors_on_in_eval_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padding)
        found = puredrop.convert(encoder)(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found, expected)
