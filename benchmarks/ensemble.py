"""What an ensemble of dropout's sub-networks costs, against the loop that people write: ratios in one run.

Usage: python benchmarks/ensemble.py [--repeats N] [--threads N] [--json FILE] [--only TEXT]

The loop calls model.train() and runs nn.Dropout once for each sample, softmax and mean included. "equal error" gives
the loop as many samples as it needs for the squared error of the mean that ours has, measured against 20 000 members,
with a bootstrap over inputs. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dropout_cost import medians
from torch import Tensor, nn

import puredrop


def mlp() -> nn.Module:
    """784-512-256-10 (.5, .3)."""
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def cnn() -> nn.Module:
    """Two convolutions on 28 x 28, dropout before the last two layers."""
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(
        *layers, nn.Dropout(0.25), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
    )


def encoder() -> nn.Module:
    """Four layers of width 256 on 32 tokens, torch's dropouts everywhere."""
    layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 4), nn.Flatten(), nn.Linear(32 * 256, 10))


def loop(model: nn.Module, x: Tensor, samples: int) -> Tensor:
    """What people write."""
    model.train()
    with torch.no_grad():
        total = torch.zeros(len(x), 10)
        for _ in range(samples):
            total += model(x).softmax(1)
    return total / samples


def timed(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds, the two taking turns."""
    a, b = medians([ours, theirs], repeats)
    return a, b


def equal_error(ensemble: puredrop.DropoutEnsemble, model: nn.Module, x: Tensor, seconds: tuple[float, float]) -> str:
    """How much sooner ours has a squared error of the mean than the loop has, both at T = 100; a bootstrap interval."""
    truth = puredrop.DropoutEnsemble(model, seed=1, balanced=False).predict(x, members=20_000, keep=0).mean
    ours = torch.stack([_squared(puredrop.DropoutEnsemble(model, seed=s), x, truth) for s in range(2, 12)]).mean(0)
    theirs = torch.stack([(loop(model, x, 100) - truth).square().mean(1) for _ in range(10)]).mean(0)
    # The reference has an error of its own, that of 20 000 independent members: 1/200 of the loop's.
    own = theirs.mean() / 200
    random = np.random.default_rng(0)
    rows = len(x)
    ratios = []
    for _ in range(1000):
        chosen = torch.from_numpy(random.integers(0, rows, rows))
        ratios.append(float((theirs[chosen].mean() - own) / (ours[chosen].mean() - own)))
    less, faster = float((theirs.mean() - own) / (ours.mean() - own)), seconds[1] / seconds[0]
    low, high = np.quantile(ratios, [0.025, 0.975]) * faster
    return (
        f"{less * faster:.1f}x [{low:.1f}, {high:.1f}] ({less:.2f} times less squared error, {faster:.1f}x the speed)"
    )


def _squared(ensemble: puredrop.DropoutEnsemble, x: Tensor, truth: Tensor) -> Tensor:
    return (ensemble.predict(x, members=100, keep=0).mean - truth).square().mean(1)


def peak(samples: int) -> tuple[int, int]:
    """Bytes at the peak of a process that predicts, and how many of them it did not have before."""
    line = [sys.executable, __file__, "--peak", str(samples)]
    whole, more = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    return int(whole), int(more)


def _peak(samples: int) -> tuple[int, int]:
    torch.manual_seed(0)
    ensemble, x = puredrop.DropoutEnsemble(mlp()), torch.randn(1024, 784)
    ensemble.survey(x)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is measured from here on
    before = _memory("VmRSS")
    ensemble.predict(x, members=samples)
    return _memory("VmHWM"), _memory("VmHWM") - before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def rows(repeats: int, only: str) -> dict[str, str]:
    """The table."""
    torch.manual_seed(0)
    found = {}
    works: list[tuple[str, nn.Module, Tensor, int, dict[str, Any]]] = [
        ("784-512-256-10, 1024 rows, T=100, shared", mlp(), torch.randn(1024, 784), 100, {}),
        ("784-512-256-10, 1024 rows, T=100, independent", mlp(), torch.randn(1024, 784), 100, {"masks": "independent"}),
        ("CNN 28 x 28, 256 rows, T=100", cnn(), torch.randn(256, 1, 28, 28), 100, {}),
        ("encoder 4 x 256, 32 rows of 32 tokens, T=32", encoder(), torch.randn(32, 32, 256), 32, {}),
    ]
    for name, model, x, samples, options in works:
        if only not in name:
            continue
        ensemble = puredrop.DropoutEnsemble(model, **options).survey(x)
        seconds = timed(
            lambda: ensemble.predict(x, members=samples, keep=0),
            lambda: loop(model, x, samples),
            repeats,
        )
        found[name] = f"{seconds[1] / seconds[0]:.1f}x ({1000 * seconds[0]:.0f} ms against {1000 * seconds[1]:.0f})"
        print(f"{name}: {found[name]}", flush=True)
        if "shared" in name:
            found["the same at equal squared error"] = equal_error(ensemble, model, x, seconds)
            print(f"the same at equal squared error: {found['the same at equal squared error']}", flush=True)
    if only in "memory":
        (few, less), (many, more) = peak(100), peak(10_000)
        found["memory, T=10 000 against 100"] = (
            f"{many / few:.2f}x ({many / 2**20:.0f} MB against {few / 2**20:.0f} in all; "
            f"{more / 2**20:.0f} against {less / 2**20:.0f} more than before the call)"
        )
        print(f"memory, T=10 000 against 100: {found['memory, T=10 000 against 100']}", flush=True)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.peak:
        print(*_peak(asked.peak))
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {asked.threads} threads")
    found = rows(asked.repeats, asked.only)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
