import copy
import pickle

import pytest
import torch

import puredrop
from oracles import same_bits
from puredrop import Key

LAYERS = pytest.mark.parametrize("library", [puredrop.nn, torch.nn], ids=["puredrop", "torch"])


def network(library):
    return torch.nn.Sequential(
        torch.nn.Linear(784, 512),
        torch.nn.ReLU(),
        library.Dropout(p=0.5),
        torch.nn.Linear(512, 256),
        torch.nn.ReLU(),
        library.Dropout(p=0.3),
        torch.nn.Linear(256, 10),
    )


@LAYERS
def test_the_script_of_the_product_page(library):
    x, model = torch.randn(4, 784), network(library)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    dp = library.Dropout(p=0.5)
    dp.train()
    # The count of zeros in 10 000 is within 5 sigma of half; one seed in 1.7 million fails by chance.
    ones = dp(torch.ones(1000, 10))
    assert set(ones.unique().tolist()) == {0.0, 2.0}
    assert abs((ones == 0).sum().item() - 5000) < 250


@LAYERS
def test_a_seed_repeats_the_masks(library):
    x, model = torch.randn(4, 784), network(library)
    torch.manual_seed(1)
    first = model(x)
    with torch.random.fork_rng():
        model(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)


def test_it_is_torchs_layer_to_everyone_who_asks():
    ours, theirs = puredrop.nn.Dropout(0.3, True), torch.nn.Dropout(0.3, True)
    assert isinstance(ours, torch.nn.Dropout)
    assert repr(ours) == f"puredrop.nn.{theirs!r}"
    assert ours.state_dict() == theirs.state_dict()
    assert (ours.p, ours.inplace, ours.training) == (theirs.p, theirs.inplace, theirs.training)
    assert repr(puredrop.nn.Dropout(key=Key(7), shared_dims=(1,))) == (
        "puredrop.nn.Dropout(p=0.5, inplace=False, key=Key(7), shared_dims=(1,))"
    )


def test_state_dicts_are_interchangeable_with_torchs_network():
    x, ours, theirs = torch.randn(4, 784), network(puredrop.nn), network(torch.nn)
    theirs.load_state_dict(ours.state_dict())
    assert same_bits(ours.eval()(x).detach(), theirs.eval()(x).detach())


def test_a_layer_with_a_key_drops_the_same_units_each_time():
    layer = puredrop.nn.Dropout(0.5, key=Key(3))
    x = torch.randn(100)
    assert same_bits(layer(x), layer(x))
    assert same_bits(layer(x), puredrop.functional.dropout(x, 0.5, key=Key(3)))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same_bits(other(x), layer(x))
        assert other.key == layer.key


def test_a_scheduled_rate_given_as_tensor_is_data():
    layer = puredrop.nn.Dropout(torch.tensor(0.5), key=Key(3))
    x = torch.ones(1000)
    assert repr(layer) == "puredrop.nn.Dropout(p=0.5, inplace=False, key=Key(3))"
    assert same_bits(layer(x), puredrop.functional.dropout(x, 0.5, key=Key(3)))
    layer.p.fill_(0.1)
    assert same_bits(layer(x), puredrop.functional.dropout(x, torch.tensor(0.1), key=Key(3)))
    layer.p = torch.tensor(0.1, dtype=torch.float64)
    assert same_bits(layer(x), puredrop.functional.dropout(x, 0.1, key=Key(3)))
    layer.p = torch.tensor(0.0)
    assert same_bits(layer(x), x)


def test_a_compiled_network_equals_the_eager_one():
    model = network(puredrop.nn)[:-1]  # up to the second dropout: what it drops can be read
    for i, layer in enumerate(model):
        if isinstance(layer, puredrop.nn.Dropout):
            layer.key = Key(0).fold_in(i)
    x = torch.randn(4, 784)
    output = model(x)
    compiled = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(compiled, output)
    assert torch.equal(compiled == 0, output == 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"p": 2}, ValueError, "between 0 and 1, but got 2"),
        ({"p": float("nan")}, ValueError, "but got nan"),
        ({"p": torch.tensor(2.0)}, ValueError, "but got 2.0"),
        ({"p": "a"}, TypeError, "p is 'a'; expected a number"),
        ({"key": 7}, TypeError, "key is 7; expected puredrop.Key"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        puredrop.nn.Dropout(**arguments)
