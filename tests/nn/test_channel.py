import io

import pytest
import torch

import puredrop
from oracles import same_bits
from puredrop import Key, Window, functional

SHAPES = {"1d": (4, 6, 5), "2d": (4, 6, 5, 3), "3d": (4, 6, 5, 3, 2)}


@pytest.mark.parametrize("kind", SHAPES)
def test_one_decision_per_sample_and_channel_and_it_is_that_of_a_matrix(kind):
    x = torch.randn(SHAPES[kind])
    layer = getattr(puredrop.nn, f"Dropout{kind}")(0.5, key=Key(8))
    decisions = puredrop.keep_mask((4, 6), 0.5, Key(8))
    expected = torch.where(decisions.view(4, 6, *[1] * (x.dim() - 2)), 2 * x, 0)
    assert same_bits(layer(x), expected)
    assert layer.eval()(x) is x
    assert isinstance(layer, getattr(torch.nn, f"Dropout{kind}"))
    if kind != "2d":
        unbatched = getattr(functional, f"dropout{kind}")(x[2], 0.5, key=Key(8), window=None)
        assert same_bits(unbatched, torch.where(decisions[0].view(6, *[1] * (x.dim() - 2)), 2 * x[2], 0))


@pytest.mark.parametrize("kind", SHAPES)
def test_windows_and_sample_ids(kind):
    x, function = torch.randn(SHAPES[kind]), getattr(functional, f"dropout{kind}")
    whole = function(x, 0.5, key=Key(1))
    window = Window(x.shape, (2, 3, *[0] * (x.dim() - 2)))
    assert same_bits(function(x[2:, 3:], 0.5, key=Key(1), window=window), whole[2:, 3:])
    order = torch.tensor([3, 1])
    assert same_bits(function(x[order], 0.5, key=Key(1), sample_ids=order), whole[order])


def test_the_rate_is_that_of_channels():
    # 40 000 channels at p = .3: within 5 sigma (0.0115); one seed in 1.7 million fails by chance.
    y = functional.dropout2d(torch.ones(200, 200, 2, 2), 0.3, key=Key(4))
    assert abs((y[:, :, 0, 0] == 0).double().mean().item() - 0.3) < 0.0115


def test_gradients():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: functional.dropout1d(x, 0.5, key=Key(6)), x, check_forward_ad=True)


def test_bad_input_is_named():
    with pytest.raises(RuntimeError, match=r"dropout1d: Expected 2D or 3D input, but received a 4D input"):
        functional.dropout1d(torch.ones(1, 1, 1, 1))
    with pytest.raises(TypeError, match=r"input is list; expected a torch.Tensor"):
        functional.dropout2d([1.0])
    with pytest.raises(TypeError, match=r"key is 3; expected puredrop.Key"):
        puredrop.nn.Dropout2d(key=3)
    with pytest.warns(
        UserWarning, match=r"dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D"
    ):
        functional.dropout2d(torch.ones(2, 3, 4), key=Key(1))
    with pytest.warns(UserWarning, match=r"dropout3d: Received a 2-D input to dropout3d, which is deprecated"):
        functional.dropout3d(torch.ones(2, 3), key=Key(1))


def test_weights_only():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), puredrop.nn.Dropout(0.3, key=Key(2)), puredrop.nn.Dropout1d(0.2))
    for saved in (model.state_dict(), model):
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        allowed = [torch.nn.Sequential, torch.nn.Linear, puredrop.nn.Dropout, puredrop.nn.Dropout1d, Key]
        with torch.serialization.safe_globals(allowed if saved is model else []):
            loaded = torch.load(file, weights_only=True)
    assert repr(loaded) == repr(model)
