"""What dropout costs, as ratios against peers in one run: a table on the terminal, JSON, and a plot for each theme.

Usage: python benchmarks/dropout_cost.py [--repeats N] [--json FILE] [--plots FOLDER]

Calls of a row take turns; the figure is the median. A bar is what design asks for on the machine it was measured on
(AVX-512, 2 cores); a row that loses to its peer is printed as a loss, whatever the bar.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import puredrop
import puredrop.functional as P
from puredrop import _backend

Call = Callable[[], object]
KEY = puredrop.Key(0)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: what is measured.
        peer: what it is compared with.
        seconds: median of ours and of the peer.
        unit: how many elements a call has, or 0 where the call itself is the unit.
        bar: what the design asks of that ratio, or None.
        is_price: whether the ratio is ours / peer, the smaller the better.
    """

    what: str
    peer: str
    seconds: tuple[float, float]
    unit: int
    bar: float | None = None
    is_price: bool = False

    @property
    def ratio(self) -> float:
        """The figure the bar speaks of."""
        ours, peer = self.seconds
        return ours / peer if self.is_price else peer / ours

    @property
    def verdict(self) -> str:
        """What a reader should see at once."""
        loses = not self.is_price and self.ratio < 1
        if self.bar is None:
            return "LOSES" if loses else ""
        meets = self.ratio <= self.bar if self.is_price else self.ratio >= self.bar
        return ("meets " if meets else "MISSES ") + f"{'<=' if self.is_price else '>='} {self.bar:g}"


def medians(calls: list[Call], repeats: int, at_least: float = 0.004) -> list[float]:
    """Median seconds of each call, the calls taking turns so that a busy moment hits all of them."""
    inner = []
    for call in calls:
        call()
        started = time.perf_counter()
        call()
        inner.append(max(1, round(at_least / (time.perf_counter() - started))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, count, found in zip(calls, inner, times, strict=True):
            started = time.perf_counter()
            for _ in range(count):
                call()
            found.append((time.perf_counter() - started) / count)
    return [statistics.median(found) for found in times]


def elementwise(repeats: int) -> Iterator[Row]:
    """Forward passes over sizes, rates and threads; backward; other dtypes and fused forms."""
    bars = {0.5: {2**16: (45, 3.3), 2**19: (60, 1.9), 2**22: (50, 1.9)}}
    bars[0.1] = {2**16: (17, 3.8), 2**19: (25, 2.4), 2**22: (25, 2.4)}
    for threads in (2, 1):
        torch.set_num_threads(threads)
        for p in (0.5, 0.1):
            for size in (2**10, 2**12, 2**16, 2**19, 2**22, 2**26):
                if size == 2**26 and (p, threads) != (0.5, 2):
                    continue
                x = torch.randn(size)
                # Too slow to repeat as often: its large sizes are an order of magnitude above the noise.
                few = repeats if size < 2**22 else max(3, repeats // 5)
                ours, torchs, relu = medians(
                    [lambda: P.dropout(x, p), lambda: F.dropout(x, p), lambda: torch.relu(x)],
                    few,
                )
                what = f"forward p={p}, {size} elements, {threads} thread{'s' * (threads > 1)}"
                least, price = bars[p].get(size, (None, None)) if threads == 2 else (None, None)
                yield Row(what, "F.dropout", (ours, torchs), size, least)
                yield Row(what, "relu", (ours, relu), size, price, is_price=True)
    torch.set_num_threads(2)
    x = torch.randn(2**20, requires_grad=True)
    ones = torch.randn(2**20)

    def both(dropout: Callable[[Tensor], Tensor]) -> Call:
        return lambda: torch.autograd.grad(dropout(x), x, ones)

    yield Row("forward + backward, 1 M", "F.dropout", pair(both(P.dropout), both(F.dropout), repeats), 2**20, 35)
    half, plain = torch.randn(2**20).bfloat16(), x.detach()
    calls = pair(lambda: P.dropout(half), lambda: F.dropout(half), repeats)
    yield Row("bfloat16 forward, 1 M", "F.dropout", calls, 2**20, 60)
    calls = pair(lambda: P.relu_dropout(plain), lambda: torch.relu(plain), repeats)
    yield Row("relu_dropout, 1 M", "relu alone", calls, 2**20, 1.8, is_price=True)
    calls = pair(lambda: P.gelu_dropout(plain), lambda: F.gelu(plain), repeats)
    yield Row("gelu_dropout, 1 M", "gelu alone", calls, 2**20, None, is_price=True)
    calls = pair(lambda: P.dropout_add(plain, ones), lambda: plain + ones, repeats)
    yield Row("dropout_add, 1 M", "add alone", calls, 2**20, None, is_price=True)
    for shape in ((4, 16, 8, 8), (64, 128, 32, 32)):
        maps = torch.randn(shape)
        calls = pair(lambda: P.dropout2d(maps), lambda: F.dropout2d(maps), repeats)
        yield Row(f"dropout2d {shape}", "F.dropout2d", calls, maps.numel(), 1)
    for shape in ((32, 64, 56, 56), (32, 16, 56, 56), (32, 512, 7, 7), (16, 3, 224, 224)):
        maps, last = torch.randn(shape), torch.randn(shape).to(memory_format=torch.channels_last)
        calls = pair(lambda: P.dropout(last), lambda: P.dropout(maps), repeats)
        yield Row(f"channels_last {shape}", "contiguous", calls, maps.numel(), 2, is_price=True)
    for what, tensor in (
        ("transposed (2048, 2048)", torch.randn(2048, 2048).t()),
        ("heads (16, 128, 8, 64).transpose(1, 2)", torch.randn(16, 128, 8, 64).transpose(1, 2)),
    ):
        plain = torch.randn(tensor.shape)
        calls = pair(lambda: P.dropout(tensor), lambda: P.dropout(plain), repeats)
        yield Row(what, "contiguous", calls, plain.numel(), 2, is_price=True)


def pair(ours: Call, peer: Call, repeats: int) -> tuple[float, float]:
    """Medians of two calls."""
    first, second = medians([ours, peer], repeats)
    return first, second


def peers(repeats: int) -> Iterator[Row]:
    """Other implementations, where they are installed."""
    x = torch.randn(2**19)
    generator = np.random.default_rng(0)
    array = x.numpy()

    def numpy_dropout() -> object:
        return np.where(generator.random(array.shape, dtype=np.float32) < 0.5, 0, array * 2)

    yield Row("forward p=0.5, 512 k", "NumPy", pair(lambda: P.dropout(x), numpy_dropout, repeats), 2**19)
    compiled = torch.compile(F.dropout)
    yield Row("forward p=0.5, 512 k", "torch.compile", pair(lambda: P.dropout(x), lambda: compiled(x), repeats), 2**19)
    if importlib.util.find_spec("jax"):
        import jax

        key, y = jax.random.key(0), jax.numpy.asarray(array)

        def jax_dropout(key: Any, y: Any) -> Any:
            return jax.numpy.where(jax.random.bernoulli(key, 0.5, y.shape), y * 2, 0)

        jitted = jax.jit(jax_dropout)
        calls = pair(lambda: P.dropout(x), lambda: jitted(key, y).block_until_ready(), repeats)
        yield Row("forward p=0.5, 512 k", "JAX (threefry)", calls, 2**19)


def calls(repeats: int) -> Iterator[Row]:
    """The price of one call on a small tensor, in microseconds, against torch's own."""
    x = torch.randn(32, 128)
    y = torch.randn(32, 128, requires_grad=True)
    for name, tensor in (("", x), (", with grad", y)):
        one = pair(lambda: P.dropout(tensor), lambda: F.dropout(tensor), repeats)
        yield Row(f"call on 32x128{name}", "F.dropout", one, 0)
        one = pair(lambda: P.dropout(tensor), lambda: torch.relu(tensor), repeats)
        yield Row(f"call on 32x128{name}", "relu", one, 0, is_price=True)
    keyed = pair(lambda: P.dropout(x, key=KEY.fold_in(7)), lambda: P.dropout(x, key=KEY), repeats)
    yield Row("call with a folded key", "key not folded", keyed, 0, is_price=True)


def steps(repeats: int) -> Iterator[Row]:
    """Whole training steps: the same network with dropout swapped, and without.

    A turn lasts long enough for many steps, as in training: networks that change places at every step find each other's
    weights and code in the caches, which costs the one with more operations most and is nothing that a user sees.
    """

    def step(model: nn.Module, x: Tensor) -> Call:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return run

    def mlp(first: nn.Module, second: nn.Module) -> nn.Module:
        return nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), first, nn.Linear(512, 256), nn.ReLU(), second, nn.Linear(256, 10)
        )

    for batch in (128, 1024):
        x = torch.randn(batch, 784)
        ours, torchs, none = medians(
            [
                step(mlp(puredrop.nn.Dropout(0.5), puredrop.nn.Dropout(0.3)), x),
                step(mlp(nn.Dropout(0.5), nn.Dropout(0.3)), x),
                step(mlp(nn.Identity(), nn.Identity()), x),
            ],
            repeats,
            at_least=0.1,
        )
        what = f"training step 784-512-256-10, batch {batch}"
        yield Row(what, "no dropout", (ours, none), 0, 1.08, is_price=True)
        yield Row(what, "nn.Dropout", (ours, torchs), 0)
    x = torch.randn(16, 128, 512)
    for attention, what, bar in ((0.0, "encoder layer 512, 16x128", 1.06), (0.1, "the same, attention too", 1.12)):
        layers = []
        for kind in ("ours", "torch", "none"):
            rate = 0.0 if kind == "none" else 0.1
            layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=rate, batch_first=True)
            layer.self_attn.dropout = min(rate, attention)
            layers.append(step(puredrop.convert(layer) if kind == "ours" else layer, x))
        ours, torchs, none = medians(layers, max(5, repeats // 2))
        yield Row(f"training step, {what}", "no dropout", (ours, none), 0, bar, is_price=True)
        yield Row(f"training step, {what}", "nn.Dropout", (ours, torchs), 0)


def line(row: Row) -> str:
    """A row of the table."""
    scale, name = (row.unit / 1e9, "ns/el") if row.unit else (1e-6, "us")
    ours, peer = (seconds / scale for seconds in row.seconds)
    price = "price" if row.is_price else "speed-up"
    return f"{row.what:<46}{ours:>10.3g} {row.peer:<15}{peer:>9.3g} {name:<6}{row.ratio:>8.2f} {price:<9}{row.verdict}"


def draw(rows: list[Row], path: Path, theme: str) -> None:
    """Nanoseconds per element over sizes: torch's, ours and a ReLU; light or dark, on a transparent ground."""
    import matplotlib.pyplot as plt

    ink, faint, *colours = (
        ("#1f2328", "#d0d7de", "#8250df", "#0969da", "#6e7781")
        if theme == "light"
        else ("#e6edf3", "#3d444d", "#bc8cff", "#58a6ff", "#9198a1")
    )
    style: dict[Any, Any] = {"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "puredrop", "text.color": ink}
    style |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), ink)
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        found = [row for row in rows if row.what.startswith("forward p=0.5") and row.what.endswith("2 threads")]
        for (name, which, peer), colour in zip(
            (("F.dropout", 1, "F.dropout"), ("puredrop", 0, "F.dropout"), ("relu", 1, "relu")), colours, strict=True
        ):
            points = [(row.unit, row.seconds[which] / row.unit * 1e9) for row in found if row.peer == peer]
            axes.loglog(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=2)
            axes.annotate(name, points[1], (8, 5), textcoords="offset points", color=colour)  # where they lie apart
        sizes = sorted({row.unit for row in found})
        axes.set_xticks(sizes, [f"{n >> 20} M" if n >> 20 else f"{n >> 10} k" for n in sizes])
        axes.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
        axes.minorticks_off()
        axes.grid(axis="y", color=faint, linewidth=0.8)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.margins(x=0.02)
        axes.set_xlabel("elements")
        axes.set_title("ns per element: forward, p = 0.5, float32, 2 threads", loc="left", fontsize=11, color=ink)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--plots", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    library = _backend.library()
    machine = f"{platform.processor() or platform.machine()}, {library.isa if library else 'reference'}"
    print(f"puredrop {puredrop.__version__}, torch {torch.__version__}, {machine}, float32 unless said\n")
    rows: list[Row] = []
    matrix, started = torch.randn(512, 512), time.perf_counter()
    while time.perf_counter() - started < 2:  # until the processor's clock has settled
        matrix @ matrix
    for part in (calls, elementwise, peers, steps):
        torch.set_num_threads(2)
        for row in part(arguments.repeats):
            rows.append(row)
            print(line(row), flush=True)
    missed = [row for row in rows if row.verdict.startswith("MISSES")]
    print(f"\n{len(missed)} of {sum(row.bar is not None for row in rows)} bars missed; 0 bytes are kept for backward")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    found = [asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in rows]
    arguments.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": found}, indent=1))
    for theme in ("light", "dark"):
        draw(rows, arguments.plots / f"speed-{theme}.svg", theme)


if __name__ == "__main__":
    main()
