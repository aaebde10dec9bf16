"""Layers that drop weights, tokens, or within the module that they hold pass the conformance suite, too."""

import torch
from test_layers import Shaped, positive
from torch import nn

import puredrop
from puredrop import Key
from puredrop.nn import (
    GRU,
    LSTM,
    RNN,
    EmbeddingDropout,
    LockedDropout,
    MultiheadAttention,
    PatchDropout,
    WeightDrop,
    WordDropout,
    drop_connect,
)
from puredrop.testing import LayerConformance


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
