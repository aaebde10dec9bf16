"""What a training step costs batchwise, against no dropout, nn.Dropout and a net of half the width: ratios in one run.

Usage: python benchmarks/batchwise.py [--repeats N] [--threads N] [--fused] [--json FILE] [--only TEXT]

A step is zero_grad, forward, cross-entropy, backward and SGD with momentum. All nets of a row take turns. The net of
half the width is what a step could cost if thinning were free: it has the shapes that are left on average, and half the
weights for the optimizer, which dropout does not spare; `limit` adds that back.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dropout_cost import medians
from torch import nn

import puredrop
from puredrop.compact import functions as _functions


@dataclass(frozen=True)
class Work:
    """A network and a batch.

    Args:
        name: what the table says.
        net: (whether it has dropout, the share of the width) -> the network.
        sample: shape of one.
        batch: samples.
        groups: how many are measured.
    """

    name: str
    net: Callable[[bool, bool], nn.Module]
    sample: tuple[int, ...]
    batch: int
    groups: tuple[int, ...]


def mlp(widths: Sequence[int], rates: Sequence[float]) -> Callable[[bool, bool], nn.Module]:
    """Linear, ReLU, dropout; a thin one keeps of each width what dropout does."""

    def net(drops: bool, thin: bool) -> nn.Module:
        kept = [round(width * (1 - p)) for width, p in zip(widths[1:-1], rates, strict=True)]
        sizes = [widths[0], *(kept if thin else widths[1:-1]), widths[-1]]
        layers: list[nn.Module] = []
        for a, b, p in zip(sizes[:-2], sizes[1:-1], rates, strict=True):
            layers += [nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(p)] if drops else [])]
        return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    return net


def cnn(drops: bool, thin: bool) -> nn.Module:
    """Four convolutions of 128 channels on maps of 32 x 32."""
    layers: list[nn.Module] = []
    sizes = [3, *([64 if thin else 128] * 4)]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), *([nn.Dropout2d(0.5)] if drops else [])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


WORKS = [
    Work("784-512-256-10 (.5, .3), 1024", mlp([784, 512, 256, 10], [0.5, 0.3]), (784,), 1024, (4, 1)),
    Work("784-2048x3-10 (.5), 1024", mlp([784, 2048, 2048, 2048, 10], [0.5] * 3), (784,), 1024, (4, 1, 8, 16)),
    Work("784-2048x3-10 (.5), 128", mlp([784, 2048, 2048, 2048, 10], [0.5] * 3), (784,), 128, (1,)),
    Work("784-8192x2-10 (.5), 512", mlp([784, 8192, 8192, 10], [0.5] * 2), (784,), 512, (1,)),
    Work("CNN 4 x 128 channels (.5), 32 x 32, 64", cnn, (3, 32, 32), 64, (1, 4)),
]
PARTS = ("gather", "matmul", "scatter", "optimizer")
_PRODUCTS: tuple[str, ...] = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm", "aten::mkldnn_convolution")
_PRODUCTS += ("aten::convolution_backward", "aten::_slow_conv2d_forward")


class Step:
    """One arm's training step."""

    def __init__(self, model: nn.Module, work: Work, fused: bool) -> None:
        self.model = model
        self.x, self.y = torch.randn(work.batch, *work.sample), torch.randint(0, 10, (work.batch,))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)

    def __call__(self) -> None:
        """Take it."""
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()


def milliseconds(steps: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Medians; the steps take turns."""
    return [1e3 * seconds for seconds in medians(steps, repeats)]


@contextmanager
def timed(owner: Any, name: str, total: dict[str, float]) -> Any:
    """Add up the time that a function takes."""
    function = getattr(owner, name)

    def run(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            total[name] = total.get(name, 0.0) + time.perf_counter() - started

    setattr(owner, name, run)
    try:
        yield
    finally:
        setattr(owner, name, function)


def parts(step: Step, repeats: int) -> dict[str, float]:
    """Milliseconds of a step by what they are spent on."""
    total: dict[str, float] = {}
    with timed(_functions, "gather", total), timed(_functions, "scatter", total), timed(step.optimizer, "step", total):
        for _ in range(repeats):
            step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(repeats):
            step()
    products = sum(one.self_cpu_time_total for one in profile.key_averages() if one.key in _PRODUCTS)
    found = {"gather": total["gather"], "scatter": total["scatter"], "optimizer": total["step"]}
    return {**{name: 1e3 * value / repeats for name, value in found.items()}, "matmul": products / 1e3 / repeats}


def measure(work: Work, repeats: int, fused: bool) -> dict[str, Any]:
    """All arms of one row."""
    steps = {
        "none": Step(work.net(False, False), work, fused),
        "dropout": Step(work.net(True, False), work, fused),
        "half": Step(work.net(False, True), work, fused),
    }
    for groups in work.groups:
        model = work.net(True, False)
        puredrop.batchwise(model, groups)
        steps[f"G={groups}"] = Step(model, work, fused)
    times = dict(zip(steps, milliseconds(list(steps.values()), repeats), strict=True))
    sweeps = milliseconds([steps["none"].optimizer.step, steps["half"].optimizer.step], repeats)
    spent = {f"G={groups}": parts(steps[f"G={groups}"], max(3, repeats // 3)) for groups in work.groups}
    return {"name": work.name, "ms": times, "sweep": sweeps[0], "half_sweep": sweeps[1], "parts": spent}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/batchwise.md has it."""
    lines = [
        "| network, batch | G | ms | over nn.Dropout | over none | half width: over nn.Dropout | over none | "
        "of the limit | gather | matmul | scatter | optimizer |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms = row["ms"]
        limit = ms["half"] + row["sweep"] - row["half_sweep"]
        for arm, spent in row["parts"].items():
            cells = [row["name"], arm[2:], f"{ms[arm]:.1f}"]
            cells += [f"{ms[other] / ms[one]:.2f}" for one in (arm, "half") for other in ("dropout", "none")]
            cells += [f"{100 * limit / ms[arm]:.0f} %", *(f"{spent[part]:.1f}" for part in PARTS)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fused", action="store_true", help="SGD(fused=True), in all arms")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="rows whose name has this text in it")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    rows = [measure(work, asked.repeats, asked.fused) for work in WORKS if asked.only in work.name]
    print(f"torch {torch.__version__}, {platform.machine()}, {asked.threads} threads, medians of {asked.repeats}")
    print(table(rows))
    for row in rows:
        others = ", ".join(f"{arm} {row['ms'][arm]:.1f}" for arm in ("none", "dropout", "half"))
        sweeps = f"optimizer alone {row['sweep']:.1f}, of the half {row['half_sweep']:.1f}"
        print(f"{row['name']}: {others} ms; {sweeps}")
    if asked.json:
        asked.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
