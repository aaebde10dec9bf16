import pytest
import torch
from torch import nn

from puredrop import Key, Window, functional
from puredrop.compare.network import Network

NETWORK = Network((6, 8, 5, 3), (0.5, 0.3), 0.2)


def sequential(parameters, seed):
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3)
    )
    model.load_state_dict({name: value[seed] for name, value in parameters.items()})
    return model


def test_every_seed_is_the_sequential_model_of_its_slice():
    parameters = NETWORK.initial(range(4))
    x = torch.randn(4, 7, 6)
    logits = NETWORK.outputs(parameters, x)
    for seed in range(4):
        torch.testing.assert_close(logits[seed], sequential(parameters, seed).eval()(x[seed]))


def test_initial_weights_depend_on_the_seed_alone_and_are_those_of_linear():
    few, many = NETWORK.initial([3, 5]), NETWORK.initial(range(6))
    for name in few:
        assert torch.equal(few[name], many[name][[3, 5]])
    assert not torch.equal(many["0.weight"][0], many["0.weight"][1])
    wide = Network((100, 400, 2), (0.5,)).initial([0])
    assert wide["0.weight"].abs().max() <= 0.1 < 1.001 * wide["0.weight"].abs().max()
    # 40 000 uniforms on [-.1, .1]: the mean is within 5 sigma (0.00145) except once in 1.7 million seeds.
    assert wide["0.weight"].mean().abs() < 0.00145


@pytest.mark.parametrize("one_mask", [False, True])
def test_masks_are_those_of_the_contract_seed_by_seed(one_mask):
    parameters, key = NETWORK.initial(range(3)), Key(9)
    x = torch.randn(3, 7, 6)
    logits = NETWORK.outputs(parameters, x, key, one_mask=one_mask)
    for seed in range(3):

        def drop(h, rate, site, seed=seed):
            window = Window((3, *h.shape), (seed, 0, 0))
            shared = (1,) if one_mask else ()
            return functional.dropout(h[None], rate, key=key.fold_in(site), window=window, shared_dims=shared)[0]

        model = sequential(parameters, seed)
        h = drop(x[seed], 0.2, "input")
        h = drop(model[1](model[0](h)), 0.5, "2")
        h = drop(model[4](model[3](h)), 0.3, "5")
        torch.testing.assert_close(logits[seed], model[6](h))


def test_one_mask_is_one_network_for_all_rows():
    parameters = NETWORK.initial(range(2))
    x = torch.randn(2, 1, 6).expand(2, 9, 6)
    same = NETWORK.outputs(parameters, x, Key(1), one_mask=True)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    own = NETWORK.outputs(parameters, x, Key(1))
    assert (own[0, 0] - own[0, 1]).abs().max() > 0.01
