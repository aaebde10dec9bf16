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


@pytest.mark.parametrize("rates", [(0.5, 0.3), (0.0, 0.9)])
@pytest.mark.parametrize("input_rate", [0.0, 0.2])
@pytest.mark.parametrize(("groups", "starts"), [(1, [0]), (3, [0, 2, 4]), (7, range(7)), (50, range(7))])
def test_groups_are_the_whole_network_under_their_masks(groups, starts, input_rate, rates):
    """Each row under the mask of its group's first, of any group that has fewer rows than groups its own."""
    network = Network((6, 8, 5, 3), rates, input_rate)
    parameters, key, x = network.initial(range(3)), Key(9), torch.randn(3, 7, 6)
    leaves = [value.requires_grad_() for value in parameters.values()]
    found = network.outputs(parameters, x, key, groups=groups)
    ids = torch.tensor([max(s for s in starts if s <= row) for row in range(7)])

    def drop(h, rate, site):
        return functional.dropout(
            h, rate, key=key.fold_in(site), sample_ids=ids, sample_dim=1, window=Window(h.shape, (0, 0, 0))
        )

    def linear(h, name):
        return torch.baddbmm(parameters[f"{name}.bias"].unsqueeze(1), h, parameters[f"{name}.weight"].mT)

    h = drop(x, input_rate, "input")
    h = drop(torch.relu(linear(h, "0")), rates[0], "2")
    expected = linear(drop(torch.relu(linear(h, "3")), rates[1], "5"), "6")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(output.square().sum(), leaves) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_some_seeds_have_the_groups_that_they_have_among_all():
    parameters, x = NETWORK.initial(range(4)), torch.randn(4, 7, 6)
    whole = NETWORK.outputs(parameters, x, Key(3), groups=2)
    part = {name: value[1:3] for name, value in parameters.items()}
    torch.testing.assert_close(NETWORK.outputs(part, x[1:3], Key(3), first=1, groups=2), whole[1:3])
