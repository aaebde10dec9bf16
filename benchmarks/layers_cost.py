"""What the other layers cost against torch's own, or against the lines people write by hand: ratios in one run.

Usage: python benchmarks/layers_cost.py [--repeats N]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from dropout_cost import Row, line, medians, pair
from torch import Tensor, nn

import puredrop
import puredrop.functional as P


def gaussian_by_hand(x: Tensor, p: float) -> Tensor:
    """Torch's generator, one multiplication."""
    noise: Tensor = 1 + (p / (1 - p)) ** 0.5 * torch.randn_like(x)
    return x * noise


def drop_path_by_hand(x: Tensor, p: float) -> Tensor:
    """As timm writes it."""
    mask = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - p)
    return x * mask.div_(1 - p)


def drop_block_by_hand(x: Tensor, p: float, size: int) -> Tensor:
    """As torchvision writes it."""
    n, c, h, w = x.shape
    gamma = p * h * w / (size**2 * (h - size + 1) * (w - size + 1))
    noise = torch.empty((n, c, h - size + 1, w - size + 1)).bernoulli_(gamma)
    noise = 1 - F.max_pool2d(F.pad(noise, [size // 2] * 4), size, 1, size // 2)
    return x * noise * (noise.numel() / (1e-6 + noise.sum()))


def functions(repeats: int) -> Iterator[Row]:
    """Forward passes."""
    x, maps = torch.randn(2**20), torch.randn(64, 128, 14, 14)
    for what, ours, peer, count in (
        ("alpha_dropout, 1 M", lambda: P.alpha_dropout(x, 0.5, True), lambda: F.alpha_dropout(x, 0.5, True), x.numel()),
        ("gaussian_dropout, 1 M", lambda: P.gaussian_dropout(x, 0.5), lambda: gaussian_by_hand(x, 0.5), x.numel()),
        (
            "drop_path (64, 128, 14, 14)",
            lambda: P.drop_path(maps, 0.1),
            lambda: drop_path_by_hand(maps, 0.1),
            maps.numel(),
        ),
        (
            "drop_block2d (64, 128, 14, 14), blocks of 7",
            lambda: P.drop_block2d(maps, 0.1, 7),
            lambda: drop_block_by_hand(maps, 0.1, 7),
            maps.numel(),
        ),
    ):
        yield Row(what, "by hand" if "alpha" not in what else "F.alpha_dropout", pair(ours, peer, repeats), count)


def layers(repeats: int) -> Iterator[Row]:
    """Forward and backward of layers that hold dropout, against torch's."""
    x = torch.randn(64, 16, 256, requires_grad=True)
    for name, ours, peer in (
        (
            "MultiheadAttention 256, 8 heads, 64x16",
            puredrop.nn.MultiheadAttention(256, 8, dropout=0.1),
            nn.MultiheadAttention(256, 8, dropout=0.1),
        ),
        ("LSTM 256, 2 layers, 64x16", puredrop.nn.LSTM(256, 256, 2, dropout=0.3), nn.LSTM(256, 256, 2, dropout=0.3)),
    ):

        def run(layer: nn.Module) -> None:
            output = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
            output[0].sum().backward()

        yield Row(name, "torch's", pair(lambda: run(ours), lambda: run(peer), repeats), 0)


def watching(repeats: int) -> Iterator[Row]:
    """What `sites`, `check` and `intercept` cost over forwards of an encoder."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(8, 32, 64)

    def intercepted() -> None:
        with P.intercept():
            model(x)

    plain, sites, check, under = medians(
        [
            lambda: model(x),
            lambda: puredrop.sites(model, x),
            lambda: puredrop.check(model, x),
            intercepted,
        ],
        repeats,
    )
    what = "encoder of 4 layers, 17 sites"
    yield Row(f"sites: {what}", "one forward", (sites, plain), 0, is_price=True)
    yield Row(f"check: {what}", "one forward", (check, plain), 0, is_price=True)
    yield Row(f"intercept: {what}", "one forward", (under, plain), 0, is_price=True)


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    for part in (functions, layers, watching):
        for row in part(arguments.repeats):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
