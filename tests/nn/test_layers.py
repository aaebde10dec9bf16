"""Every layer passes the conformance suite; what is its own comes after."""

import torch
from torch import nn

import puredrop
from puredrop import Key
from puredrop.nn import (
    GRU,
    LSTM,
    RNN,
    AlphaDropout,
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    EmbeddingDropout,
    FeatureAlphaDropout,
    GaussianDropout,
    LayerDrop,
    LockedDropout,
    MultiheadAttention,
    PatchDropout,
    WeightDrop,
    WordDropout,
    drop_connect,
)
from puredrop.testing import LayerConformance


def positive(*shape, dtype=torch.float32, seed=1):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5).to(dtype)


class Shaped(LayerConformance):
    shape = (4, 6)

    def example(self, dtype=torch.float32):
        return (positive(*self.shape, dtype=dtype),)


class TestDropout(Shaped):
    def make(self, p, key=None):
        return Dropout(p, key=key)


class TestDropout1d(Shaped):
    shape = (4, 6, 5)

    def make(self, p, key=None):
        return Dropout1d(p, key=key)


class TestDropout2d(Shaped):
    shape = (4, 6, 3, 2)

    def make(self, p, key=None):
        return Dropout2d(p, key=key)


class TestDropout3d(Shaped):
    shape = (4, 6, 3, 2, 2)

    def make(self, p, key=None):
        return Dropout3d(p, key=key)


class Alpha(Shaped):
    def expected(self, layer, x):
        p = self.p
        return (1 - p) * ((1 - p) * (1 + p * 1.7580993408473766**2)) ** -0.5 * x

    def dropped(self, output, x):
        low = -1.7580993408473766 * (1 - self.p) * ((1 - self.p) * (1 + self.p * 1.7580993408473766**2)) ** -0.5
        return ((output - low).abs() < 1e-9).double().mean()

    nested = False  # dropped values are not zero; dropped by the same masks as Dropout, below


class TestAlphaDropout(Alpha):
    def make(self, p, key=None):
        return AlphaDropout(p, key=key)

    def test_it_drops_what_dropout_drops_and_has_torchs_values(self):
        x = torch.randn(10_000)
        ours = AlphaDropout(0.3, key=Key(2))(x)
        keep = puredrop.keep_mask(x.shape, 0.3, Key(2))
        theirs = nn.functional.alpha_dropout(torch.zeros(10_000), 0.3, True)  # two values: the smaller is a drop
        torch.testing.assert_close(ours[~keep], theirs.min().expand(int((~keep).sum())), rtol=1e-6, atol=0)
        a = ((1 - 0.3) * (1 + 0.3 * 1.7580993408473766**2)) ** -0.5
        torch.testing.assert_close(ours[keep], a * (x[keep] + 0.3 * 1.7580993408473766), rtol=1e-5, atol=1e-5)

    def test_mean_0_and_variance_1_stay(self):
        # 10^6 elements: standard errors .001 of the mean and below .002 of the variance; bounds of 5 of them.
        for p in (0.1, 0.5, 0.9):
            y = AlphaDropout(p, key=Key(9))(torch.randn(10**6))
            assert abs(y.mean()) < 0.005
            assert abs(y.var() - 1) < 0.01


class TestFeatureAlphaDropout(Alpha):
    shape = (4, 6, 5)

    def make(self, p, key=None):
        return FeatureAlphaDropout(p, key=key)


class TestGaussianDropout(Shaped):
    zeroes = False
    nested = False

    def make(self, p, key=None):
        return GaussianDropout(p, key=key)

    def dropped(self, output, x):
        return None

    def test_the_variance_is_that_of_dropout(self):
        # The sample variance of 10^6 normal numbers has standard error .0014 of itself; 5 of them.
        y = GaussianDropout(0.3, key=Key(3))(torch.ones(10**6, dtype=torch.float64))
        assert abs(y.var() / (0.3 / 0.7) - 1) < 0.007


class TestDropPath(Shaped):
    decisions = 4

    def make(self, p, key=None):
        return DropPath(p, key=key)


class TestDropPathOfBatches(Shaped):
    decisions = 1

    def make(self, p, key=None):
        return DropPath(p, "batch", key=key)


class TestDropPathUnscaled(Shaped):
    decisions = 4

    def make(self, p, key=None):
        return DropPath(p, scale_by_keep=False, key=key)

    def expected(self, layer, x):
        return (1 - self.p) * x


class TestLayerDrop(LayerConformance):
    nested = False
    zeroes = False
    fullgraph = False
    decisions = 1

    def make(self, p, key=None):
        torch.manual_seed(2)
        return LayerDrop(nn.Linear(6, 6), p, key=key)

    def without(self, layer, x):
        return layer.layer(x)

    def expected(self, layer, x):
        return self.p * x + (1 - self.p) * layer.layer(x)

    def dropped(self, output, x):
        return (output == x).double().mean()

    def test_the_computation_is_skipped(self):
        calls = []
        inner = nn.Linear(2, 2)
        inner.register_forward_hook(lambda *_: calls.append(1))
        layer = LayerDrop(inner, 1.0)
        x = torch.ones(2)
        assert layer(x) is x
        assert not calls
        layer.eval()(x)
        assert calls


class TestDropBlock2d(Shaped):
    shape = (4, 6, 7, 7)
    nested = False  # gamma is not monotone bit for bit in the rescaled values, but the blocks are; below
    decisions = 4 * 6  # a channel at a time is the worst case

    def make(self, p, key=None):
        return DropBlock2d(p, 3, key=key)

    def expected(self, layer, x):
        return None  # what is kept is rescaled by the share kept: the sum over equal elements stays, below

    def test_a_samples_sum_stays(self):
        y = DropBlock2d(0.3, 3, key=Key(1))(torch.ones(50, 6, 7, 7))
        torch.testing.assert_close(y.sum((1, 2, 3)), torch.full((50,), 6 * 49.0), rtol=1e-5, atol=0)

    def test_the_rate_on_any_map(self):
        # 400 x 16 maps, dependent within a map: at worst one decision each, standard error .0038; bounds of 5.
        for size, block in ((7, 7), (8, 7), (14, 7), (4, 3), (20, 5), (7, 4), (3, 2)):
            for p in (0.1, 0.4):
                y = DropBlock2d(p, block, key=Key(5))(torch.ones(400, 16, size, size))
                assert abs((y == 0).double().mean().item() - p) < 5 * (p * (1 - p) / 6400) ** 0.5

    def test_blocks_are_squares_and_nested(self):
        zero = [DropBlock2d(p, 3, key=Key(4))(torch.ones(2, 3, 9, 9)) == 0 for p in (0.1, 0.3)]
        assert (zero[0] <= zero[1]).all()
        covered = nn.functional.max_pool2d(zero[0].float(), 3, 1)  # an erosion by the square, then a dilation: itself
        eroded = 1 - nn.functional.max_pool2d(1 - zero[0].float(), 3, 1)
        opened = nn.functional.max_pool2d(nn.functional.pad(eroded, (2, 2, 2, 2)), 3, 1)
        assert covered.any()
        assert torch.equal(opened.bool(), zero[0])

    def test_half_precision_does_not_overflow(self):
        y = DropBlock2d(0.1, 7, key=Key(4))(torch.ones(1, 256, 32, 32, dtype=torch.float16))
        assert y.isfinite().all()
        assert abs(y.float().mean().item() - 1) < 1e-3


class TestDropConnect(LayerConformance):
    decisions = 18
    nested = False
    zeroes = False

    def make(self, p, key=None):
        torch.manual_seed(2)
        return drop_connect(nn.Linear(6, 3), p, key=key)

    def without(self, layer, x):
        return nn.functional.linear(x, layer.parametrizations.weight.original, layer.bias)

    def dropped(self, output, x):
        return None

    def test_the_weights_are_dropped_as_anything_is(self):
        layer = drop_connect(nn.Conv2d(3, 4, 2), 0.5, key=Key(1))
        expected = puredrop.functional.dropout(layer.parametrizations.weight.original, 0.5, key=Key(1))
        assert torch.equal(layer.weight, expected)
        assert torch.equal(layer.eval().weight, layer.parametrizations.weight.original)


class TestWeightDrop(LayerConformance):
    nested = False
    zeroes = False
    fullgraph = False
    draws = 400

    def make(self, p, key=None):
        torch.manual_seed(2)
        return WeightDrop(nn.GRUCell(6, 3), p, ["weight_ih"], key=key)

    def without(self, layer, x):
        return layer.module(x)

    def expected(self, layer, x):
        return None  # a recurrent network is not linear in its weights; the weights' expectation is Dropout's

    def test_vmap_is_a_loop(self):
        """torch has no rule for its recurrent cells and networks."""

    def dropped(self, output, x):
        return None


class TestWeightDropOfLSTM(TestWeightDrop):
    def make(self, p, key=None):
        torch.manual_seed(2)
        return WeightDrop(nn.LSTM(6, 3, 2), p, key=key)

    def without(self, layer, x):
        return layer.module(x)[0]

    def output(self, layer, *inputs):
        return layer(*inputs)[0]

    dtypes = (torch.float32, torch.float64)

    def test_the_kernel_reads_the_dropped_weights(self):
        x = torch.randn(5, 2, 6)
        layer = self.make(0.5, Key(3))
        plain = nn.LSTM(6, 3, 2)
        plain.load_state_dict(layer.module.state_dict())
        with torch.no_grad():
            for name in ("weight_hh_l0", "weight_hh_l1"):
                weight = getattr(plain, name)
                weight.copy_(puredrop.functional.dropout(weight, 0.5, key=Key(3).fold_in(name)))
        torch.testing.assert_close(layer(x)[0], plain(x)[0], rtol=0, atol=0)


class TestEmbeddingDropout(LayerConformance):
    decisions = 5
    differentiable = False

    def make(self, p, key=None):
        torch.manual_seed(2)
        return EmbeddingDropout(nn.Embedding(9, 6), p, key=key)

    def example(self, dtype=torch.float32):
        return (torch.tensor([[3, 1, 4], [1, 5, 8]]),)

    def without(self, layer, ids):
        return layer.embedding(ids)

    def dropped(self, output, ids):
        return torch.stack([(output[ids == word] == 0).all() for word in ids.unique()]).double().mean()

    def test_it_is_dropout_of_the_matrix(self):
        layer = self.make(0.5, Key(3))
        matrix = puredrop.functional.dropout(layer.embedding.weight, 0.5, key=Key(3), shared_dims=(1,))
        ids = torch.randint(9, (4, 7))
        assert torch.equal(layer(ids), nn.functional.embedding(ids, matrix))
        assert torch.equal(layer(ids[0, 0]), matrix[ids[0, 0]])


class TestLockedDropout(Shaped):
    shape = (3, 4, 6)

    def make(self, p, key=None):
        return LockedDropout(p, key=key)

    def test_one_mask_over_time(self):
        x = positive(5, 2, 4)
        y = LockedDropout(0.5, key=Key(3))(x) == 0
        assert (y == y[:1]).all()
        assert torch.equal(LockedDropout(0.5, batch_first=True, key=Key(3))(x.transpose(0, 1)).transpose(0, 1) == 0, y)


class TestWordDropout(LayerConformance):
    differentiable = False
    nested = False
    zeroes = False
    dtypes = ()

    def make(self, p, key=None):
        return WordDropout(0, p, protected=[7], key=key)

    def example(self, dtype=torch.float32):
        return (torch.arange(1, 7).repeat(4, 1),)

    def expected(self, layer, ids):
        return (1 - self.p) * ids

    def _under(self, layer, key, *inputs):
        return super()._under(layer, key, *inputs).double()

    def test_protected_words_stay(self):
        ids = torch.randint(6, 9, (100,))
        y = WordDropout(1, 1.0, protected=[7])(ids)
        assert torch.equal(y, torch.where(ids == 7, 7, 1))


class TestPatchDropout(LayerConformance):
    nested = False
    zeroes = False
    p = 0.5

    def make(self, p, key=None):
        return PatchDropout(p, key=key)

    def example(self, dtype=torch.float32):
        return (positive(3, 9, 4, dtype=dtype),)

    def expected(self, layer, x):
        return None

    def dropped(self, output, x):
        return None

    def test_an_exact_number_stays_each_as_likely(self):
        x = torch.arange(13.0).view(1, 13, 1).repeat(4000, 1, 1)
        for p in (0.1, 0.5, 0.9, 1.0):
            layer = PatchDropout(p, num_prefix_tokens=2, ordered=True, return_indices=True, key=Key(1))
            y, indices = layer(x)
            count = max(1, int(11 * (1 - p)))
            assert y.shape == (4000, 2 + count, 1)
            assert (y[:, :2, 0] == torch.tensor([0.0, 1.0])).all()
            assert torch.equal(y[:, 2:, 0], indices + 2.0)
            assert (indices.diff(dim=1) > 0).all()
            # Each token stays with probability count / 11 in 4000 rows; 5 standard errors of at most .0079.
            share = torch.bincount(indices.flatten(), minlength=11) / 4000
            assert (share - count / 11).abs().max() < 0.04


class TestMultiheadAttention(LayerConformance):
    nested = False
    zeroes = False
    draws = 1500

    def make(self, p, key=None):
        torch.manual_seed(2)
        return MultiheadAttention(6, 2, dropout=p, key=key)

    def output(self, layer, x):
        return layer(x, x, x)[0]

    def example(self, dtype=torch.float32):
        return (positive(3, 2, 6, dtype=dtype),)

    def without(self, layer, x):
        return nn.MultiheadAttention.forward(layer.eval(), x, x, x)[0]

    def expected(self, layer, x):
        expected = self.without(layer, x)  # dropout of the weights, and all after it is linear
        layer.train()
        return expected

    def dropped(self, output, x):
        return None


class Recurrent(LayerConformance):
    nested = False
    zeroes = False
    fullgraph = False
    kind = None
    dtypes = (torch.float32, torch.float64)

    def make(self, p, key=None):
        torch.manual_seed(2)
        return self.kind(6, 3, 3, dropout=p, key=key)

    def output(self, layer, x):
        return layer(x)[0]

    def without(self, layer, x):
        return layer.eval()(x)[0]

    def expected(self, layer, x):
        return None

    def dropped(self, output, x):
        return None

    def test_vmap_is_a_loop(self):
        """torch's own recurrent networks cannot be mapped."""

    def test_one_layer_at_a_time(self):
        torch.manual_seed(3)
        x = torch.randn(5, 2, 6)
        layer = self.make(0.4, Key(8))
        y = x
        for i in range(3):
            y = y if i == 0 else puredrop.functional.dropout(y, 0.4, key=Key(8).fold_in(i))
            single = getattr(nn, self.kind.__name__)(y.shape[-1], 3)
            single.load_state_dict(
                {f"{n}_l0": getattr(layer, f"{n}_l{i}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            )
            y = single(y)[0]
        torch.testing.assert_close(layer(x)[0], y, rtol=0, atol=0)


class TestLSTM(Recurrent):
    kind = LSTM


class TestGRU(Recurrent):
    kind = GRU


class TestRNN(Recurrent):
    kind = RNN
