"""The mask operator against its peers, as ratios in one run: a table on the terminal, JSON with --json FILE.

Usage: python benchmarks/mask_cost.py [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import puredrop
from puredrop.ops import _reference

KEY = puredrop.Key(0)


def alternate(calls: dict[str, Callable[[], object]], repeats: int, at_least: float = 0.01) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns so that a busy moment hits all of them."""
    for call in calls.values():
        call()
    started = time.perf_counter()
    next(iter(calls.values()))()
    inner = max(1, round(at_least / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - started) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def forward(size: int, p: float) -> dict[str, Callable[[], object]]:
    """One forward of float32 elements."""
    x = torch.randn(size)
    return {
        "puredrop": lambda: puredrop.functional.dropout(x, p, key=KEY),
        "F.dropout": lambda: F.dropout(x, p),
        "relu": lambda: torch.relu(x),
    }


def digits(size: int) -> dict[str, Callable[[], object]]:
    """The first digits of a run of indices, sixteen to a Philox call and one to a call."""
    index = torch.arange(size)
    key = KEY.value
    return {
        "run": lambda: _reference._digit_of_run(key, size, 0, index.device),
        "one by one": lambda: _reference.digit(key, index, 0),
    }


def folding() -> dict[str, Callable[[], object]]:
    """One key from another, as a Python integer and as a tensor."""
    key, step = KEY.tensor(), torch.tensor(7)
    return {"Key.fold_in": lambda: KEY.fold_in(7), "fold_in": lambda: puredrop.rng.fold_in(key, step)}


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"puredrop {puredrop.__version__} ({puredrop.backend()}), torch {torch.__version__}, {machine}, float32\n")
    rows: list[dict[str, Any]] = []
    print(f"{'forward, ns per element':<28}{'puredrop':>10}{'F.dropout':>11}{'relu':>8}{'puredrop / F.dropout':>23}")
    for p in (0.5, 0.1):
        for size in (2**12, 2**16, 2**19, 2**22):
            found = {
                name: seconds / size * 1e9 for name, seconds in alternate(forward(size, p), arguments.repeats).items()
            }
            ratio = found["puredrop"] / found["F.dropout"]
            verdict = "loses" if ratio > 1 else ""
            rows.append({"what": "forward", "p": p, "size": size, "ns_per_element": found, "ratio": ratio})
            values = (
                f"{found['puredrop']:>10.2f}{found['F.dropout']:>11.2f}{found['relu']:>8.2f}{ratio:>14.2f}  {verdict}"
            )
            print(f"{f'p={p}, {size} elements':<28}{values}")
    for what, calls in (("digits", digits(2**19)), ("fold_in", folding())):
        seconds = alternate(calls, arguments.repeats)
        rows.append({"what": what, "seconds": seconds})
        print(f"\n{what}: " + ", ".join(f"{name} {value * 1e6:.1f} us" for name, value in seconds.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
