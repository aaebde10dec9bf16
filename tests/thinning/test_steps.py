"""A compacted step is, to rounding, that of the whole layers under the same masks: outputs and all gradients."""

import copy
import itertools

import pytest
import torch
from steps import CLOSE, Written, X, cnn, difference, mlp, step, whole, worst
from torch import nn

import puredrop
from puredrop.compact.kept import Kept
from puredrop.thinning import _layers, _masks
from puredrop.thinning._packed import Packed


@pytest.fixture(params=["cpu", "reference"])
def backend(request, use):
    use(backend=request.param)


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("input_p", [0.0, 0.2])
def test_mlp(backend, groups, input_p):
    assert difference(mlp(input_p=input_p), X, groups) < CLOSE


@pytest.mark.parametrize("groups", [1, 4, 5])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(backend, dims, groups):
    model, x = cnn(dims), torch.randn(8, 3, *[11] * dims)
    assert difference(model, x, groups) < CLOSE


def test_same_padding_and_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 20, 3, padding="same"), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(20, 8, 1))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 7, 7).contiguous(memory_format=torch.channels_last)
    assert difference(model, x, 3) < CLOSE


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_feed_forward_blocks(kind, batch_first):
    """The block's mask is shared by a group's tokens; all other dropout draws as before."""
    torch.manual_seed(0)
    layer = kind(16, 2, 48, dropout=0.4, batch_first=batch_first, activation="gelu")
    others = [path for path, m in layer.named_modules() if isinstance(m, nn.Dropout) and path != "dropout"]
    for path in others:
        layer.get_submodule(path).p = 0.0
    for attention in (m for m in layer.modules() if isinstance(m, nn.MultiheadAttention)):
        attention.dropout = 0.0
    model = layer if kind is nn.TransformerEncoderLayer else _WithItself(layer)
    path = "dropout" if model is layer else "layer.dropout"
    leave = [*others, *(f"layer.{one}" for one in others)]
    x = torch.randn(6, 5, 16) if batch_first else torch.randn(5, 6, 16)
    assert difference(model, x, 3, 0 if batch_first else 1, leave) < CLOSE
    assert isinstance(model.get_submodule(path).role.original_class, type)


class _WithItself(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


@pytest.mark.parametrize("sample_dim", [0, 1])
def test_tokens_share_their_samples_mask(sample_dim):
    x = torch.randn(9, 7, 20)
    assert difference(mlp(input_p=0.3), x, 3, sample_dim, told=sample_dim) < CLOSE


ACTIVATIONS = [
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Identity),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    assert difference(mlp(activation=activation), X, 3) < CLOSE


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.ELU, nn.Hardtanh])
def test_activations_in_place(activation):
    assert difference(mlp(activation=lambda: activation(inplace=True)), X, 3) < CLOSE


def test_a_forward_of_functions_and_a_layer_in_two_places():
    assert difference(Written(), X, 4) < CLOSE


class TwoReaders(nn.Module):
    """One mask feeds two consumers; with `adds` one of them is no layer."""

    def __init__(self, adds=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(20, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        self.drop, self.adds = nn.Dropout(0.5), adds

    def forward(self, x):
        h = self.drop(torch.relu(self.a(x)))
        return self.b(h) + (h if self.adds else self.c(h))


@pytest.mark.parametrize("adds", [False, True])
def test_a_mask_that_feeds_two_consumers(adds):
    model = TwoReaders(adds)
    assert difference(model, X, 3) < CLOSE
    assert model.drop.role.packs is not adds


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype, bias):
    tolerance = 1e-12 if dtype == torch.float64 else 0.04
    assert difference(mlp(bias=bias).to(dtype), X.to(dtype), 3) < tolerance
    assert difference(cnn(bias=bias).to(dtype), torch.randn(6, 3, 9, 9, dtype=dtype), 3) < tolerance


@pytest.mark.parametrize("make", [mlp, cnn])
def test_autocast(make):
    x = X if make is mlp else torch.randn(6, 3, 9, 9)
    model = make()
    expected = whole(model, 3)
    puredrop.batchwise(model, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(model, x), step(expected, x)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in found[1].values())
    assert worst(found, expected) < 0.04


class TestDegenerate:
    def given(self, monkeypatch, masks):
        """Draw these masks, one after the other."""
        masks = itertools.cycle(masks)
        draw = _masks.draw

        def chosen(site, shape, device):
            drawn = draw(site, shape, device)
            return drawn._replace(kept=Kept.from_mask(next(masks).expand(drawn.split.groups, -1)))

        monkeypatch.setattr(_layers, "draw", chosen)

    @pytest.mark.parametrize("kept", [[], [3], list(range(48))])
    def test_all_dropped_one_left_none_dropped(self, monkeypatch, kept):
        model = mlp((20, 48, 5), (0.5,))
        mask = torch.zeros(48)
        mask[kept] = 1
        hidden = torch.relu(model[0](X)) * mask * 2
        expected = hidden @ model[3].weight.t() + model[3].bias
        gradient = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        puredrop.batchwise(model, 3)
        self.given(monkeypatch, [mask])
        found = model(X)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(found.square().sum(), list(model.parameters())), gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kept", [[], [7]])
    def test_of_channels(self, monkeypatch, kept):
        model, x = (
            nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(20, 4, 3)),
            torch.randn(4, 3, 8, 8),
        )
        mask = torch.zeros(20)
        mask[kept] = 1
        expected = model[3](torch.relu(model[0](x)) * mask.view(-1, 1, 1) * 2)
        puredrop.batchwise(model, 2)
        self.given(monkeypatch, [mask])
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("p", [0.0, 1.0, torch.tensor(0.5)])
    def test_rates(self, p):
        model = mlp()
        model[2].p = p
        assert difference(model, X, 3) < CLOSE

    def test_the_expectation_is_that_of_dropout(self, monkeypatch):
        """Over all 2^5 masks of each of two groups, of outputs and gradients: that of a mask for each of two samples."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2)).double()
        x = torch.randn(2, 3, dtype=torch.float64)
        masks = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=5)]
        chance = {mask: 0.7 ** mask.sum() * 0.3 ** (5 - mask.sum()) for mask in masks}

        def expected(of_group):
            total = None
            for mask in masks:
                values = of_group(mask)
                total = (
                    [chance[mask] * v for v in values]
                    if total is None
                    else [t + chance[mask] * v for t, v in zip(total, values, strict=True)]
                )
            return total

        def by_hand(sample):
            def values(mask):
                output = model[3](torch.tanh(model[0](sample)) * mask / 0.7)
                return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]

            return expected(values)

        iid = [by_hand(x[i : i + 1]) for i in range(2)]
        thin = copy.deepcopy(model)
        puredrop.batchwise(thin, 2)
        draw = _masks.draw

        def compacted(mask):
            monkeypatch.setattr(
                _layers, "draw", lambda *a: draw(*a)._replace(kept=Kept.from_mask(torch.stack([mask, mask.flip(0)])))
            )
            output = thin(x)
            return [output, *torch.autograd.grad(output.square().sum(), list(thin.parameters()))]

        # One group's mask is the other's read backwards, as likely: what is averaged is a sum over groups.
        mean = expected(compacted)
        torch.testing.assert_close(mean[0], torch.cat([iid[0][0], iid[1][0]]), rtol=0, atol=1e-12)
        for found, a, b in zip(mean[1:], iid[0][1:], iid[1][1:], strict=True):
            torch.testing.assert_close(found, a + b, rtol=0, atol=1e-12)


class TestTraining:
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
            lambda p: torch.optim.Adam(p, 0.01),
            lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
            lambda p: torch.optim.RMSprop(p, 0.01),
        ],
    )
    @pytest.mark.parametrize("micro", [1, 3])
    @pytest.mark.parametrize("to_none", [True, False])
    def test_optimizers_and_accumulation(self, make, micro, to_none):
        """Weights after five steps; gradients' memory is used again in each."""
        thin = mlp(input_p=0.2)
        models = [whole(thin, 2), thin]
        puredrop.batchwise(thin, 2)
        for model in models:
            optimizer = make(model.parameters())
            torch.manual_seed(3)
            for i in range(5):
                optimizer.zero_grad(set_to_none=to_none)
                for part in (X + i).chunk(micro):
                    model(part).square().mean().backward()
                optimizer.step()
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)

    def test_a_gradient_that_is_kept_is_not_written_over(self):
        model = mlp()
        puredrop.batchwise(model, 2)
        model(X).sum().backward()
        kept = model[0].weight.grad
        before = kept.clone()
        model.zero_grad()
        model(X * 2).sum().backward()
        assert torch.equal(kept, before)
        assert not torch.equal(model[0].weight.grad, before)

    def test_backward_twice(self):
        model = mlp()
        puredrop.batchwise(model, 2)
        loss = model(X).square().sum()
        loss.backward(retain_graph=True)
        first = [p.grad.clone() for p in model.parameters()]
        loss.backward()
        assert all(torch.equal(p.grad, 2 * g) for p, g in zip(model.parameters(), first, strict=True))

    def test_weights_changed_before_backward_are_an_error(self):
        model = mlp()
        puredrop.batchwise(model, 2)
        output = model(X)
        with torch.no_grad():
            model[0].weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()

    def test_second_derivatives_are_refused(self):
        model, x = mlp(), X.clone().requires_grad_()
        puredrop.batchwise(model, 2)
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()

    def test_frozen_weights(self):
        model = mlp()
        for p in model[0].parameters():
            p.requires_grad_(False)
        model[3].bias.requires_grad_(False)
        assert difference(model, X, 3) < CLOSE

    def test_evaluation_is_that_of_the_model(self):
        model = mlp(input_p=0.2)
        expected = copy.deepcopy(model).eval()(X)
        puredrop.batchwise(model, 2)
        assert torch.equal(model.eval()(X), expected)
        model.train()[3].eval()  # one layer alone
        assert isinstance(model[:1](X), Packed)
        assert not isinstance(model[:2](X), Packed)

    def test_the_state_dict_and_what_is_listed_stay(self):
        model = mlp()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        names = [name for name, _ in model.named_modules()]
        puredrop.batchwise(model, 2)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert [name for name, _ in model.named_modules()] == names
        assert all(isinstance(model[i], kind) for i, kind in enumerate([nn.Linear, nn.ReLU, nn.Dropout]))
