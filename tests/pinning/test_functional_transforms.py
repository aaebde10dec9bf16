"""Pinned models under torch.func: the masks are those of the same model without it, from the first forward on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import puredrop
from oracles import same_bits

IDS = torch.tensor([7, 3, 900, 12, 0, 5])


class Functional(nn.Module):
    """Dropout as a function, in a module of the user's."""

    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


def net(*middle):
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), *middle, nn.Linear(16, 3))


NETS = {
    "our layers": lambda: puredrop.convert(net(nn.Dropout(0.4))),
    "torch's layers": lambda: net(nn.Dropout(0.4)),
    "torch's function": lambda: net(Functional()),
    "two uses": lambda: net(nn.Dropout(0.4), puredrop.nn.Dropout(0.3), Functional()),
}


@pytest.fixture(params=NETS)
def model(request):
    torch.manual_seed(0)
    return NETS[request.param]()


def first(model, call, ids=None):
    """Return what a call gives with a freshly pinned copy of a model."""
    model = copy.deepcopy(model)
    with puredrop.reproducible(model, seed=3) as run:
        run.sample_ids = ids
        return call(model, dict(model.named_parameters()))


def whole_gradients(x):
    def call(model, parameters):
        return torch.autograd.grad(model(x).square().sum(), list(parameters.values()))

    return call


TRANSFORMS = {
    "grad": lambda f, p: grad(f)(p),
    "vjp": lambda f, p: vjp(f, p)[1](torch.ones(()))[0],
    "jacrev": lambda f, p: jacrev(f)(p),
    "jacfwd": lambda f, p: jacfwd(f)(p),
}


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_of_the_first_forward_are_autograds(model, name, ids):
    x = torch.randn(6, 8)
    expected = first(model, whole_gradients(x), ids)
    found = first(model, lambda m, p: TRANSFORMS[name](lambda q: functional_call(m, q, (x,)).square().sum(), p), ids)
    torch.testing.assert_close(list(found.values()), list(expected))


def test_second_derivatives_and_directions_see_one_mask(model):
    x = torch.randn(6, 8)
    weight = "0.weight"

    def hessians(m, p):
        return hessian(lambda w: functional_call(m, {**p, weight: w}, (x,)).square().sum())(p[weight].detach())

    def twice(m, p):
        w = p[weight]
        (gradient,) = torch.autograd.grad(m(x).square().sum(), w, create_graph=True)
        rows = [torch.autograd.grad(g, w, retain_graph=True)[0] for g in gradient.flatten()]
        return torch.stack(rows).view(*w.shape, *w.shape)

    torch.testing.assert_close(first(model, hessians), first(model, twice))
    tangent = torch.randn(16, 8)

    def direction(m, p):
        return jvp(lambda w: functional_call(m, {**p, weight: w}, (x,)).square().sum(), (p[weight],), (tangent,))[1]

    gradient = first(model, whole_gradients(x))[0]
    torch.testing.assert_close(first(model, direction), (gradient * tangent).sum())


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("keeps_batch", [True, False])
@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_gradients_of_each_sample_have_the_masks_of_the_whole_batch(model, ids, keeps_batch, randomness):
    x = torch.randn(6, 8)

    def mapped(m, p):
        def loss(q, row):
            return functional_call(m, q, (row[None] if keeps_batch else row,)).square().sum()

        return vmap(grad(loss), in_dims=(None, 0), randomness=randomness)(p, x)

    def one_by_one(m, p):
        losses = m(x).square().sum(1)
        rows = [torch.autograd.grad(loss, list(p.values()), retain_graph=True) for loss in losses]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    torch.testing.assert_close(list(first(model, mapped, ids).values()), first(model, one_by_one, ids))


SITES = {
    "dropout": (lambda: puredrop.nn.Dropout(0.5), (8,)),
    "torch's": (lambda: nn.Dropout(0.5), (8,)),
    "function": (Functional, (8,)),
    "alpha": (lambda: puredrop.nn.AlphaDropout(0.5), (8,)),
    "gaussian": (lambda: puredrop.nn.GaussianDropout(0.5), (8,)),
    "1d": (lambda: puredrop.nn.Dropout1d(0.5), (6, 4)),
    "2d": (lambda: puredrop.nn.Dropout2d(0.5), (6, 4, 4)),
    "torch's 2d": (lambda: nn.Dropout2d(0.5), (6, 4, 4)),
    "path": (lambda: puredrop.nn.DropPath(0.5), (6, 4)),
    "block": (lambda: puredrop.nn.DropBlock2d(0.3, 2), (6, 4, 4)),
    "attention": (lambda: Attention(), (5, 8)),
    "batchwise weights": (lambda: puredrop.nn.drop_connect(nn.Linear(8, 4)), (8,)),
}


class Attention(nn.Module):
    """Attention whose weights are dropped by torch's function."""

    def forward(self, x):
        heads = x.unflatten(-1, (2, 4)).transpose(-3, -2)
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5 * self.training)


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("site", SITES)
def test_masks_are_bit_for_bit_those_of_the_whole_batch(site, ids):
    make, shape = SITES[site]
    model, x = make(), torch.randn(6, *shape)
    whole = first(model, lambda m, _: m(x), ids)
    mapped = first(model, lambda m, _: vmap(lambda row: m(row[None])[0])(x), ids)
    assert torch.equal(mapped == 0, whole == 0)
    assert (same_bits if site != "batchwise weights" else torch.allclose)(mapped, whole)
    assert site in ("gaussian", "alpha", "attention", "batchwise weights") or (whole == 0).any()


def test_later_forwards_of_a_step_go_on_counting(model):
    x = torch.randn(6, 8)
    whole = first(model, lambda m, _: m(x))

    def parts(m, _):
        return torch.cat([m(x[:1]), vmap(m)(x[1:4]), vmap(lambda row: m(row[None])[0])(x[4:5]), m(x[5:])])

    torch.testing.assert_close(first(model, parts), whole)


def test_nested_maps_of_inputs_count_row_by_row():
    model, x = nn.Dropout(0.5), torch.randn(2, 3, 8)
    whole = first(model, lambda m, _: m(x.view(6, 8)))
    assert same_bits(first(model, lambda m, _: vmap(vmap(m))(x)).view(6, 8), whole)
    ids = IDS[:6]
    whole = first(model, lambda m, _: m(x.view(6, 8)), ids)
    assert same_bits(first(model, lambda m, _: vmap(vmap(m))(x), ids).view(6, 8), whole)
    turned = first(model, lambda m, _: vmap(vmap(m, in_dims=1), in_dims=2)(x.permute(2, 1, 0)), IDS)
    assert same_bits(turned.view(6, 8), whole)


def test_slices_of_several_samples_have_an_id_for_each():
    model, x = nn.Dropout(0.5), torch.randn(3, 2, 8)
    whole = first(model, lambda m, _: m(x.view(6, 8)), IDS)
    assert same_bits(first(model, lambda m, _: vmap(m)(x), IDS).view(6, 8), whole)
    assert same_bits(first(model, lambda m, _: vmap(m)(x)).view(6, 8), first(model, lambda m, _: m(x.view(6, 8))))
    with pytest.raises(ValueError, match=r"sample_ids has 5 entries, and vmap maps the forward over 3 samples"):
        first(model, lambda m, _: vmap(m)(x), IDS[:5])


def test_copies_of_a_model_have_the_masks_of_the_model(model):
    x = torch.randn(6, 8)
    models = [copy.deepcopy(model) for _ in range(3)]
    for member in models:
        for parameter in member.parameters():
            nn.init.normal_(parameter)
    parameters, buffers = stack_module_state(models)
    found = first(model, lambda m, _: vmap(lambda p, b: functional_call(m, (p, b), (x,)))(parameters, buffers), IDS)
    for member, output in zip(models, found, strict=True):
        torch.testing.assert_close(output, first(member, lambda m, _: m(x), IDS))

    def each_sample(m, _):
        rows = vmap(lambda p, row: functional_call(m, p, (row[None],))[0], in_dims=(None, 0))
        return vmap(rows, in_dims=(0, None))(parameters, x)

    torch.testing.assert_close(first(model, each_sample, IDS), found)


def test_what_cannot_be_decided_is_refused_and_ids_decide_it(model):
    x = torch.randn(3, 6, 8)
    parameters, _ = stack_module_state([model, model, model])

    def with_data(m, _):
        return vmap(lambda p, batch: functional_call(m, p, (batch,)))(parameters, x)

    with pytest.raises(ValueError, match=r"inputs and its parameters together, over 3 slices.*set run.sample_ids"):
        first(model, with_data)
    twin = copy.deepcopy(model)
    with puredrop.reproducible(twin, seed=3) as run:

        def with_ids(p, batch, ids):
            run.sample_ids = ids
            return functional_call(twin, p, (batch,))

        found = vmap(with_ids)(parameters, x, torch.arange(18).view(3, 6))
    torch.testing.assert_close(found.flatten(0, 1), first(model, lambda m, _: m(x.flatten(0, 1))))


class Closed(nn.Module):
    """A model that drops from a tensor which is no argument."""

    def forward(self, x):
        return F.dropout(self.hidden, 0.5, self.training) + x


def test_a_mapped_tensor_from_elsewhere_is_refused():
    model, x = Closed(), torch.randn(8)

    def mapped(m, _):
        def call(hidden):
            vars(m)["hidden"] = hidden
            return m(x)

        return vmap(call)(torch.randn(4, 8))

    with pytest.raises(ValueError, match=r"drops from a tensor that vmap maps, but neither the model's inputs"):
        first(model, mapped)


def test_a_forward_opened_by_hand_around_vmap_is_refused():
    model = net(nn.Dropout(0.5))
    x = torch.randn(6, 8)
    with puredrop.reproducible(model) as run, run.forward(batch_size=6):
        with pytest.raises(RuntimeError, match=r"opened outside of it"):
            vmap(model)(x)
        with pytest.raises(ValueError, match=r"drops from a tensor that vmap maps"):
            vmap(lambda row: model[2](row))(x)


class TimeFirst(nn.Module):
    """Samples in dimension 1."""

    def __init__(self):
        super().__init__()
        self.drop = puredrop.nn.LockedDropout(0.5)

    def forward(self, x):
        return self.drop(x)


@pytest.mark.parametrize("ids", [None, IDS])
def test_samples_in_another_dimension(ids):
    model, x = TimeFirst(), torch.randn(5, 6, 8)

    results = []
    for mapped in (False, True):
        twin = copy.deepcopy(model)
        with puredrop.reproducible(twin, seed=3, sample_dim=1) as run:
            run.sample_ids, run.batch_size = ids, None if ids is None else 1000
            results.append(
                vmap(lambda column, m=twin: m(column[:, None])[:, 0], in_dims=1, out_dims=1)(x) if mapped else twin(x)
            )
    assert same_bits(*results)
    twin = copy.deepcopy(model)
    with puredrop.reproducible(twin, seed=3, sample_dim=1), pytest.raises(ValueError, match=r"keep a dimension of si"):
        vmap(twin, in_dims=1)(x)


def test_evaluation_and_steps(model):
    x = torch.randn(6, 8)
    with puredrop.reproducible(model, seed=3) as run:
        outputs = []
        for step in range(2):
            mapped = vmap(model)(x)
            run.step = step
            torch.testing.assert_close(mapped, model(x))
            outputs.append(mapped)
            run.advance()
        assert not torch.equal(*outputs)
        model.eval()
        torch.testing.assert_close(vmap(model)(x), model(x))
