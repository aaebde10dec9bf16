"""Cost of `puredrop.watch` for each forward, by the number of sites: eager, compiled, within a compiled function.

Usage: python benchmarks/watch_cost.py [--repeats N]

A model of small layers is called with and without a watch, in turns; the figure is the median of the differences. The
cost of a call with one site is what the hook itself costs; the slope over the sites is the cost of a site.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import puredrop

SITES = (1, 100, 1000)


class Idle(nn.Module):
    """A model whose forward is cheap beside its number of sites: all but one are never called."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.1)
        self.spare = nn.ModuleList(nn.Dropout(0.1) for _ in range(sites - 1))

    def forward(self, x: Tensor) -> Tensor:
        """The layer and the dropout that are used."""
        output: Tensor = self.drop(self.linear(x))
        return output


class Stack(nn.Module):
    """A model that calls its sites, so that compiled code is guarded on each, watched or not."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Dropout(0.1) for _ in range(sites))

    def forward(self, x: Tensor) -> Tensor:
        """All layers, one after the other."""
        for layer in self.layers:
            x = layer(x)
        return x


def seconds(call: Callable[[], Any], at_least: float = 0.01) -> float:
    """Seconds of one call."""
    count, taken = 1, 0.0
    while taken < at_least:
        count *= 2
        started = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - started
    return taken / count


def costs(plain: Callable[[], Any], watched: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of a plain call, and the median of what a watched call takes besides."""
    pairs = []
    for _ in range(repeats):
        pairs.append((seconds(plain), seconds(watched)))
    return statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)


def ways(sites: int) -> dict[str, Callable[[nn.Module], Callable[[], Any]]]:
    """The ways to call a model, by name."""
    x = torch.randn(2, 8)
    small = [number for number in SITES if number <= 100]
    found: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {"eager": lambda model: lambda: model(x)}
    if sites in small:

        def compiled(function: Any) -> Callable[[], Any]:
            call = torch.compile(function, fullgraph=True, backend="aot_eager")
            return lambda: call(x)

        found["torch.compile(model)"] = compiled
        found["within a compiled function"] = lambda model: compiled(lambda x: model(x))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}"
    )
    print(f"{'way':28} {'sites':>5} {'forward, us':>12} {'watch, us':>10} {'us a site':>10}")
    for sites in SITES:
        for way, make in ways(sites).items():
            torch._dynamo.reset()
            kind = Idle if way == "eager" else Stack
            bare, model = kind(sites), kind(sites)
            watched = puredrop.watch(model, torch.optim.SGD([torch.zeros(1)]))
            plain, cost = costs(make(bare), make(model), repeats)
            watched.stop()
            print(f"{way:28} {sites:5} {1e6 * plain:12.1f} {1e6 * cost:10.2f} {1e6 * cost / sites:10.3f}")


if __name__ == "__main__":
    main()
