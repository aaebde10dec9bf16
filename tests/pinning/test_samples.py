"""Masks follow samples: through micro-batches, order and names, and wherever the samples lie in a tensor."""

import pytest
import torch
import torch.nn.functional as F
from nets import MLP, Net, masks, same, stacked
from torch import nn

import puredrop

NETS = {"ours": (MLP, (16,)), "mixed": (Net, (5, 16))}


@pytest.fixture(params=NETS)
def pinned(request):
    torch.manual_seed(0)
    kind, shape = NETS[request.param]
    model = kind()
    x = torch.randn(64, *shape)
    run = puredrop.reproducible(model, seed=7)
    run.step = 3
    return model, run, x, masks(model, x)


@pytest.mark.parametrize("sizes", [[32, 32], [48, 16], [1, 62, 1]])
def test_micro_batches(pinned, sizes):
    model, run, x, whole = pinned
    run.step = 3
    assert same(stacked([masks(model, part) for part in x.split(sizes)]), whole)


def test_accumulated_gradients_are_those_of_the_batch(pinned):
    model, run, x, _ = pinned
    gradients = []
    for sizes in ([64], [48, 16]):
        model.zero_grad()
        run.step = 3
        for part in x.split(sizes):
            model(part).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_named_samples_keep_their_masks_in_any_order(pinned):
    model, run, x, whole = pinned
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    run.step = 3
    for ids in order.split([40, 24]):
        run.sample_ids = ids
        assert same(masks(model, x[ids]), [mask[ids] for mask in whole])


def test_names_are_for_one_step(pinned):
    model, run, x, _ = pinned
    run.sample_ids = torch.arange(64)
    model(x)
    run.advance()
    with pytest.raises(ValueError, match="sample_ids were given for the step before and not for this one"):
        model(x)
    run.sample_ids = None
    one = masks(model, x)
    run.step = 4
    run.sample_ids = torch.arange(64)
    assert same(masks(model, x), one)


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        ([1, 2], TypeError, "sample_ids is list; expected a torch.int64 tensor"),
        (torch.ones(3), TypeError, "sample_ids is torch.float32; expected"),
        (torch.ones(3, 3, dtype=torch.int64), ValueError, r"sample_ids has shape \(3, 3\); expected one dimension"),
        (torch.arange(5), ValueError, "sample_ids has 5 entries, the forward 64 samples; expected one id per sample"),
    ],
)
def test_names_that_are_none(pinned, ids, error, match):
    model, run, x, _ = pinned

    def use():
        run.sample_ids = ids
        model(x)

    with pytest.raises(error, match=match):
        use()


def test_eval_counts_no_samples(pinned):
    model, run, x, whole = pinned
    run.step = 3
    first = masks(model, x[:32])
    model.eval()
    model(x)
    model.train()
    assert same(stacked([first, masks(model, x[32:])]), whole)


def test_a_forward_that_fails_counts_none(pinned):
    model, run, x, whole = pinned
    run.step = 3
    before = type(model).forward
    model.forward = lambda x: _fails(before(model, x))  # when its sites have been used
    with pytest.raises(ZeroDivisionError):
        model(x)
    del model.forward
    assert same(masks(model, x), whole)


def _fails(output):
    raise ZeroDivisionError


def test_a_forward_within_an_except_block_counts(pinned):
    """As after a batch that was too large for the memory: what is being handled is not this forward's failure."""
    model, run, x, whole = pinned
    run.step = 3
    try:
        raise MemoryError
    except MemoryError:
        parts = [masks(model, part) for part in x.split([40, 24])]
    assert same(stacked(parts), whole)


def test_dtypes_have_one_mask(pinned):
    model, run, x, whole = pinned
    for dtype in (torch.bfloat16, torch.float64):
        run.step = 3
        assert same(masks(model.to(dtype), x.to(dtype)), whole)
    run.step = 3
    with torch.autocast("cpu", torch.bfloat16):
        assert same(masks(model.float(), x), whole)


def test_other_random_numbers_change_nothing(pinned):
    import random

    import numpy as np

    model, run, x, whole = pinned
    run.step = 3
    torch.rand(7), np.random.rand(3), random.random()
    state = torch.get_rng_state()
    assert same(masks(model, x), whole)
    assert torch.equal(torch.get_rng_state(), state)  # and it draws none


class Heads(nn.Module):
    """Samples and heads together in the first dimension, as attention written by hand has them."""

    def forward(self, x):
        samples, tokens, _width = x.shape
        heads = x.view(samples, tokens, 2, -1).transpose(1, 2).reshape(2 * samples, tokens, -1)
        return F.dropout(heads @ heads.transpose(1, 2), 0.3, self.training)


def test_samples_may_share_their_dimension_with_heads_or_tokens():
    model, x = Heads(), torch.randn(12, 4, 8)
    run = puredrop.reproducible(model)
    whole = masks(model, x)
    run.step = 0
    assert same(stacked([masks(model, x[:4]), masks(model, x[4:])]), whole)
    run.step = 0
    run.sample_ids = torch.arange(11, -1, -1)
    flipped = masks(model, x.flip(0))[0].view(12, 2, 4, 4).flip(0).reshape(24, 4, 4)
    assert torch.equal(flipped, whole[0])


def encoder(batch_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_samples_in_the_second_dimension():
    model, x = encoder(batch_first=False), torch.randn(5, 12, 16)
    run = puredrop.reproducible(model, sample_dim=1)
    run.batch_size = 12
    whole = masks(model, x)
    run.step = 0
    parts = [masks(model, x[:, :4]), masks(model, x[:, 4:])]
    # Attention's masks are (samples, heads, ...), all others (tokens, samples, ...).
    dims = [0 if mask.dim() == 4 else 1 for mask in whole]
    assert 0 in dims
    assert 1 in dims
    found = [torch.cat(two, dim) for two, dim in zip(zip(*parts, strict=True), dims, strict=True)]
    assert same(found, whole)


def test_where_samples_lie_is_asked_for_not_guessed():
    model, x = encoder(batch_first=False), torch.randn(5, 12, 16)
    puredrop.reproducible(model)
    model(x)
    with pytest.raises(ValueError, match=r"a module of the model has batch_first=False.*sample_dim=1"):
        model(x)
    model = encoder(batch_first=False)
    puredrop.reproducible(model, sample_dim=1)
    model(x)
    with pytest.raises(ValueError, match=r"its samples in dimension 1 of \(5, 12, 16\).*set run.batch_size"):
        model(x)


def test_sites_without_samples():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8))
            self.drop = puredrop.nn.Dropout(0.5)
            self.linear = puredrop.nn.drop_connect(nn.Linear(8, 8), 0.5)
            self.layer = puredrop.nn.LayerDrop(nn.Identity(), 0.5)

        def forward(self, x):
            return self.layer(self.linear(x + self.drop(self.weight)))

    model, x = Positions(), torch.randn(4, 3, 8)
    puredrop.reproducible(model)
    model(x)
    with pytest.raises(
        ValueError, match=r"site 'drop' drops from \(3, 8\), which does not hold 4 samples in dimension"
    ):
        model(x)
    model = Positions()
    run = puredrop.reproducible(model, sample_dims={"drop": None})
    whole = masks(model, x)
    assert same(masks(model, x), whole)  # the next micro-batch: weights have one mask in a step
    run.advance()
    assert not same(masks(model, x), whole)
    assert model.linear.weight.eq(0).any()  # looked at outside of a forward


def test_samples_that_nobody_counts():
    model = nn.Module()
    model.drop = puredrop.nn.Dropout(0.5)
    model.x = torch.randn(6, 8)
    model.forward = lambda: model.drop(model.x)
    run = puredrop.reproducible(model)
    first = masks(model)
    with pytest.raises(
        ValueError, match=r"site 'drop': no tensor among the model's arguments.*run.forward\(batch_size"
    ):
        model()
    run.step = 0
    with run.forward(6):
        assert same(masks(model), first)
    with run.forward(6):
        second = masks(model)
    assert torch.equal(second[0], puredrop.keep_mask((12, 8), 0.5, model.drop.key.key(0))[6:])


def test_packed_sequences_in_one_forward_only():
    model = puredrop.nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
    run = puredrop.reproducible(model)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 4, 4), [4, 4, 4], batch_first=True)
    with run.forward(3):
        model(packed)
    with pytest.raises(ValueError, match="drops from a packed sequence, whose rows are no samples"), run.forward(3):
        model(packed)
    run.step = 0
    whole = masks(model, x := torch.randn(6, 4, 4))
    run.step = 0
    assert same(stacked([masks(model, x[:2]), masks(model, x[2:])]), whole)


def test_a_place_that_the_caller_gives_is_left():
    class Placed(nn.Module):
        def forward(self, x):
            return puredrop.functional.dropout(x, 0.5, window=puredrop.Window((16, 8), (12, 0)))

    model, x = Placed(), torch.randn(4, 8)
    puredrop.reproducible(model)
    first = masks(model, x)
    assert same(masks(model, x), first)


def test_windows_of_sites():
    model, x = MLP(), torch.randn(6, 16)
    window = puredrop.Window((6, 96), (0, 64))
    whole = puredrop.keep_mask((12, 96), 0.5, puredrop.Key(0).fold_in("").fold_in("drop").fold_in(0).fold_in(0))
    for given in (window, lambda input: window):
        with puredrop.reproducible(model, windows={"drop": given}):
            assert torch.equal(masks(model, x)[0], whole[:6, 64:])
            assert torch.equal(masks(model, x)[0], whole[6:, 64:])
    with (
        puredrop.reproducible(model, windows={"drop": puredrop.Window((6,), (0,))}),
        pytest.raises(ValueError, match=r"windows\['drop'\] has 1 dimensions, the site's tensor has shape \(6, 32\)"),
    ):
        model(x)


@pytest.mark.parametrize("argument", ["windows", "sample_dims"])
def test_names_of_sites_that_are_none(argument):
    model = MLP()
    puredrop.reproducible(model, **{argument: {"dorp": None}})
    with pytest.raises(ValueError, match=rf"{argument} has .dorp., which is no site; the sites are \['drop', 'out'\]"):
        model(torch.randn(4, 16))
