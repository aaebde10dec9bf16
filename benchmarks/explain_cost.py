"""What `explain.penalty` costs, in forward-backward passes of the model, and in memory.

Usage: python benchmarks/explain_cost.py [--rounds N] [--large]

Each call is divided by the median of ten training steps just before it, on the same rows. --large adds an encoder of
10^8 parameters, once, which takes a minute and some GiB.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puredrop import explain


def mnist(classes: int) -> nn.Module:
    """The net of the bar, with so many outputs."""
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(256, classes))


class Encoder(nn.Module):
    """Fourteen layers of width 768, the mean over positions, three classes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 14, enable_nested_tensor=False)
        self.last = nn.Linear(768, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        outputs: Tensor = self.last(self.layers(x).mean(1))
        return outputs


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(name: str, net: nn.Module, x: Tensor, classes: int, rounds: int, **options: Any) -> None:
    """Print what a call takes: the median of rounds, the least and the most."""
    y = torch.randint(classes, (len(x),))

    def step() -> None:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()

    call = partial(explain.penalty, net, x, y, F.cross_entropy, **options)
    step()
    call()  # once, to load what is loaded late
    found = []
    for _ in range(rounds):
        base = statistics.median(seconds(step) for _ in range(10))
        found.append(seconds(call) / base)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: {statistics.median(found):.1f} passes ({min(found):.1f} to {max(found):.1f}), a pass "
        f"{1e3 * base:.0f} ms; the process took {memory:.1f} GiB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()} {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    x = torch.rand(1024, 784)
    for classes in (10, 100):
        for per_site in (False, True):
            name = f"784-512-256-{classes}, 1024 rows, 64 members{', each site alone too' if per_site else ''}"
            measure(name, mnist(classes).train(), x, classes, arguments.rounds, per_site=per_site)
    if arguments.large:
        net = Encoder().train()
        size = sum(p.numel() for p in net.parameters()) / 1e6
        name = f"encoder of {size:.0f} million parameters, 16 rows of 64 positions, 16 members"
        measure(name, net, torch.randn(16, 64, 768), 3, 1, members=16)


if __name__ == "__main__":
    main()
