"""Layers that drop from their input pass the conformance suite; what is their own comes after."""

import torch
from torch import nn

import puredrop
from puredrop import Key
from puredrop.nn import (
    AlphaDropout,
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
    GaussianDropout,
    LayerDrop,
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
