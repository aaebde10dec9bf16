"""What the layers refuse, in words that name the argument, its value and the fix."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import puredrop
from puredrop import Key, functional
from puredrop.nn import (
    DropBlock2d,
    DropConnect,
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    PatchDropout,
    WeightDrop,
    WordDropout,
    drop_connect,
)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: drop_connect(drop_connect(nn.Linear(2, 2))),
            ValueError,
            "weight of ParametrizedLinear is dropped already",
        ),
        (lambda: drop_connect(nn.LSTM(2, 2)), ValueError, "module is LSTM, whose kernel reads a list of weights"),
        (
            lambda: drop_connect(nn.Linear(2, 2), name="wieght"),
            ValueError,
            r"name is 'wieght'; expected a parameter .*weight",
        ),
        (lambda: WeightDrop(nn.LSTM(2, 2), weights=["w"]), ValueError, r"weights is \['w'\]; expected names among"),
        (lambda: WeightDrop(nn.Linear(2, 2)), ValueError, r"weights is None; expected names among .*'weight', 'bias'"),
        (lambda: DropPath(0.1, "rows"), ValueError, r"mode is 'rows'; expected 'row' .* or 'batch'"),
        (lambda: functional.drop_path(torch.ones(2), mode="rows"), ValueError, "mode is 'rows'"),
        (lambda: GaussianDropout(1.0), ValueError, r"p is 1\.0; GaussianDropout expects p below 1"),
        (lambda: functional.gaussian_dropout(torch.ones(2), 1.0), ValueError, "gaussian_dropout expects p below 1"),
        (lambda: DropBlock2d(0.1, 0), ValueError, "block_size is 0; expected a side of 1 or more"),
        (
            lambda: functional.drop_block2d(torch.ones(2, 3, 9, 9), window=(2, 3, 9, 9)),
            TypeError,
            r"window is \(2, 3, 9, 9\); expected puredrop.Window",
        ),
        (lambda: DropBlock2d()(torch.ones(3, 9, 9)), RuntimeError, r"drop_block2d: input has shape \(3, 9, 9\)"),
        (lambda: PatchDropout(num_prefix_tokens=-1), ValueError, "num_prefix_tokens is -1; expected 0 or more"),
        (lambda: WordDropout(0)(torch.ones(3)), TypeError, r"ids has dtype torch\.float32; expected integers"),
        (lambda: functional.feature_alpha_dropout(torch.ones(3), 0.5, True), RuntimeError, "at least 2 dimensions"),
        (lambda: puredrop.nn.LSTM(2, 2, 2, dropout=0.5, key=3), TypeError, r"key is 3; expected puredrop\.Key"),
        (lambda: puredrop.nn.Dropout(0.3, key=1), TypeError, r"key is 1; .*Key\(1\) .*reproducible\(model, seed=1\)"),
        (
            lambda: puredrop.nn.Dropout(0.3, seed=1),
            TypeError,
            r"Dropout has no argument seed; .*reproducible\(model, seed",
        ),
        (lambda: puredrop.nn.AlphaDropout(seed=1), TypeError, r"AlphaDropout has no argument seed"),
        (lambda: puredrop.nn.GRU(2, 2, seed=1), TypeError, r"GRU has no argument seed"),
        (lambda: puredrop.nn.MultiheadAttention(2, 1, dropout=1.5), ValueError, "between 0 and 1, but got 1.5"),
        (
            lambda: functional.drop_block2d(
                torch.ones(1, 1, 4, 4), 0.1, 2, window=puredrop.Window((1, 1, 8, 8), (0, 0, 4, 4))
            ),
            ValueError,
            "expected the whole map, 4x4",
        ),
        (lambda: puredrop.revert(nn.Sequential(DropPath())), ValueError, "0 is DropPath, which torch has no equal of"),
    ],
)
def test_it_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_block_larger_than_the_map_is_cut_and_said():
    with pytest.warns(UserWarning, match="block_size 7 is larger than a map of 4x4; cut to it"):
        y = functional.drop_block2d(torch.ones(200, 8, 4, 4), 0.25, 7, key=Key(1))
    # Whole channels then: 1600 decisions, 5 standard errors are .054.
    assert abs((y == 0).double().mean().item() - 0.25) < 0.054
    assert ((y == 0).flatten(2).float().var(2) == 0).all()


def test_revert_ends_dropped_weights():
    model = nn.Sequential(drop_connect(nn.Linear(4, 3), 0.5), nn.ReLU())
    weight = model[0].parametrizations.weight.original
    puredrop.revert(model)
    assert model[0].weight is weight
    assert type(model[0]) is nn.Linear


def test_a_parametrization_by_hand_is_the_same():
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", DropConnect(0.5, key=Key(1)))
    other = nn.Linear(4, 3)
    other.load_state_dict({"weight": layer.parametrizations.weight.original, "bias": layer.bias})
    assert torch.equal(drop_connect(other, 0.5, key=Key(1)).weight, layer.weight)


def test_windows_and_sample_ids_of_the_new_functions():
    x = torch.randn(6, 4, 9, 9)
    order = torch.tensor([4, 1, 5])
    for function in (
        functional.drop_block2d,
        functional.drop_path,
        functional.gaussian_dropout,
        functional.alpha_dropout,
    ):
        named = {"block_size": 3} if function is functional.drop_block2d else {}
        whole = function(x, 0.3, training=True, key=Key(3), **named)
        assert torch.equal(function(x[order], 0.3, training=True, key=Key(3), sample_ids=order, **named), whole[order])
        window = puredrop.Window(x.shape, (2, 0, 0, 0))
        assert torch.equal(function(x[2:5], 0.3, training=True, key=Key(3), window=window, **named), whole[2:5])


def test_an_embedding_that_has_more_dimensions_of_ids():
    layer = EmbeddingDropout(nn.Embedding(5, 3), 1.0)
    assert layer(torch.zeros(2, 2, 2, dtype=torch.int32)).shape == (2, 2, 2, 3)
    assert not layer(torch.zeros(2, dtype=torch.int64)).any()
