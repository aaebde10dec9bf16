"""Whether nets learn as well when groups of a batch share their masks, and how fast on the clock.

Usage: python benchmarks/batchwise_accuracy.py FOLDER --task mnist --data-dir DIR [--share 0/2]   train what is missing
       python benchmarks/batchwise_accuracy.py FOLDER --task mnist --data-dir DIR --clock         seconds of a step
       python benchmarks/batchwise_accuracy.py FOLDER --task mnist --report [--plot FILE]         tables
       ... --arms iid,G=4 --epochs 30 --rate 1e-3    these alone, so long, at this rate and not the best of those tried

Every run is a file in FOLDER, so a killed one goes on where it was. Each arm may choose among as many learning rates,
by the validation rows' NLL of one short run; test rows are looked at once, after the last epoch. All arms of a seed
have the same initial weights (but for the narrow net) and see the rows in the same order.

Protocol after Srivastava et al.: Dropout (JMLR 2014): 784-1024x3-10, p = .5 hidden and .2 input, max-norm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import puredrop
from puredrop._files import write
from puredrop.compare.data import DataSplit, load

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
DECAYS = (1e-5, 1e-4)
TUNING_SEED = 100
ARMS = ("none", "weight decay", "half width", "iid", "G=16", "G=4", "G=1")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What is learned, and how.

    Args:
        widths: of all layers, input first.
        p, input_p: of hidden and input units.
        epochs, tuning_epochs, batch, seeds, max_norm: of the training.
        targets: validation NLLs whose time is reported.
        rate: the learning rate of all arms; None for the best of those tried.
        arms: those that are trained.
    """

    widths: tuple[int, ...]
    p: float
    input_p: float
    epochs: int
    tuning_epochs: int
    batch: int
    seeds: int
    max_norm: float
    targets: tuple[float, ...]
    rate: float | None = None
    arms: tuple[str, ...] = ARMS


TASKS = {
    "mnist": Task((784, 1024, 1024, 1024, 10), 0.5, 0.2, 10, 2, 128, 5, 3.0, (0.10, 0.08, 0.07, 0.06)),
    "wine": Task((11, 512, 512, 6), 0.5, 0.0, 60, 30, 128, 10, 3.0, (1.0, 0.98, 0.96)),
}


@dataclass(frozen=True)
class Rows:
    """Training, validation and test rows."""

    train: DataSplit
    validation: DataSplit
    test: DataSplit


def rows_of(name: str, folder: Path) -> Rows:
    """MNIST, or the red wines' marks as classes, columns standardised by the training rows."""
    if name == "mnist":
        data = load("mnist", folder)
        return Rows(data.train, data.validation, data.test)
    table = np.loadtxt(folder / "data.txt")
    order = np.random.default_rng(0).permutation(len(table))
    x, y = table[order, :-1], table[order, -1].astype(int)
    cuts = [0, len(x) * 3 // 5, len(x) * 4 // 5, len(x)]
    mean, deviation = x[: cuts[1]].mean(0), x[: cuts[1]].std(0)
    x, y = (x - mean) / deviation, y - y.min()
    parts = [DataSplit(torch.tensor(x[a:b]).float(), torch.tensor(y[a:b])) for a, b in itertools.pairwise(cuts)]
    return Rows(*parts)


def network(task: Task, arm: str) -> nn.Module:
    """The net of an arm."""
    drops, (first, *hidden, last) = arm == "iid" or arm.startswith("G="), task.widths
    sizes = [first, *(width // 2 if arm == "half width" else width for width in hidden)]
    layers: list[nn.Module] = [nn.Dropout(task.input_p)] if drops and task.input_p else []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(task.p)] if drops else [])]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], last))
    if arm.startswith("G="):
        puredrop.batchwise(model, int(arm[2:]))
    return model


class Training:
    """One net on its way.

    Args:
        task, arm: what is trained.
        rate, decay: of Adam, the rate rising over half an epoch, then falling to 0 along a cosine; L2 of the weights.
        seed: of weights, order and masks.
        rows: of the task.
        epochs: in all.
    """

    def __init__(self, task: Task, arm: str, rate: float, decay: float, seed: int, rows: Rows, epochs: int) -> None:
        torch.manual_seed(seed)
        self.task, self.rows = task, rows
        self.model = network(task, arm)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, weight_decay=decay, fused=True)
        self.steps, self.epochs = len(rows.train.y) // task.batch, epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.share_of_rate)
        self.order = torch.Generator().manual_seed(seed)
        self.hidden = [layer.weight for layer in self.model.children() if isinstance(layer, nn.Linear)][:-1]

    def share_of_rate(self, step: int) -> float:
        """Of the learning rate, at a step."""
        cosine = (1 + math.cos(math.pi * step / (self.epochs * self.steps))) / 2
        return min(1.0, (step + 1) / (0.5 * self.steps + 1)) * cosine

    def step(self, x: Tensor, y: Tensor) -> None:
        """One batch."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for weight in self.hidden:
                weight.renorm_(2, 0, self.task.max_norm)

    def epoch(self) -> float:
        """Every training row once, but for a rest below a batch; the seconds that it took."""
        self.model.train()
        train, batch = self.rows.train, self.task.batch
        order = torch.randperm(len(train.y), generator=self.order)
        started = time.perf_counter()
        for i in range(self.steps):
            chosen = order[i * batch : (i + 1) * batch]
            self.step(train.x[chosen], train.y[chosen])
        return time.perf_counter() - started

    def losses(self, split: DataSplit) -> tuple[Floats, Floats]:
        """NLL and error of each row."""
        self.model.eval()
        with torch.no_grad():
            logits = torch.cat([self.model(x) for x in split.x.split(1000)])
        nll = F.cross_entropy(logits, split.y, reduction="none")
        return nll.double().numpy(), (logits.argmax(1) != split.y).double().numpy()


def name_of(arm: str, rate: float, decay: float, seed: int) -> str:
    """Of a run's file."""
    return f"{arm.replace(' ', '-').replace('=', '')}_{rate}_{decay}_{seed}.json"


def run(folder: Path, task: Task, rows: Rows, arm: str, rate: float, decay: float, seed: int) -> None:
    """Train and write down one run, if that was not done before."""
    path = folder / name_of(arm, rate, decay, seed)
    if path.exists():
        return
    is_tuning = seed == TUNING_SEED
    epochs = task.tuning_epochs if is_tuning else task.epochs
    training = Training(task, arm, rate, decay, seed, rows, epochs)
    curve, seconds = [], []
    for _ in range(epochs):
        seconds.append(training.epoch())
        nll, error = training.losses(rows.validation)
        curve.append([float(nll.mean()), float(error.mean())])
    found: dict[str, Any] = {"curve": curve, "seconds": seconds}
    if not is_tuning:
        nll, error = training.losses(rows.test)
        found |= {"nll": [round(one, 6) for one in nll.tolist()], "error": error.astype(int).tolist()}
    write(path, json.dumps(found).encode())
    print(f"{path.stem}: validation NLL {curve[-1][0]:.4f}, {sum(seconds):.0f} s", flush=True)


def tuning(arm: str) -> list[tuple[float, float]]:
    """Rates and decays among which an arm may choose."""
    return [(rate, decay) for rate in RATES for decay in (DECAYS if arm == "weight decay" else (0.0,))]


def chosen(folder: Path, task: Task, arm: str) -> tuple[float, float] | None:
    """The best of them by validation NLL; None while not all were tried."""
    if task.rate is not None:
        return task.rate, DECAYS[0] if arm == "weight decay" else 0.0
    tried = {}
    for rate, decay in tuning(arm):
        path = folder / name_of(arm, rate, decay, TUNING_SEED)
        if not path.exists():
            return None
        final = read(path)["curve"][-1][0]
        tried[rate, decay] = final if math.isfinite(final) else math.inf
    return min(tried, key=lambda pair: tried[pair])


def train(folder: Path, task: Task, rows: Rows, share: tuple[int, int]) -> None:
    """One process' share of all runs, tuning first."""
    number, count = share
    trials = [(arm, pair) for arm in task.arms for pair in tuning(arm)] if task.rate is None else []
    for arm, pair in trials[number::count]:
        run(folder, task, rows, arm, *pair, TUNING_SEED)
    runs = [(seed, arm) for seed in range(task.seeds) for arm in task.arms]
    for seed, arm in runs[number::count]:
        while (best := chosen(folder, task, arm)) is None:
            time.sleep(1)  # another process is at it
        run(folder, task, rows, arm, *best, seed)


def clock(folder: Path, task: Task, rows: Rows) -> None:
    """Seconds of an epoch of each arm on this machine while it is idle, the arms taking turns."""
    arms = {arm: Training(task, arm, 1e-3, 0.0, 0, rows, 1) for arm in task.arms}
    x, y = rows.train.x[: task.batch], rows.train.y[: task.batch]
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(25):
        for arm, training in arms.items():
            started = time.perf_counter()
            training.step(x, y)
            times[arm].append(time.perf_counter() - started)
    steps = len(rows.train.y) // task.batch
    found = {arm: float(np.median(one[3:])) * steps for arm, one in times.items()}
    write(folder / "clock.json", json.dumps(found).encode())
    print(found)


def read(path: Path) -> dict[str, Any]:
    """A run's file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def finished(folder: Path, task: Task) -> dict[str, list[dict[str, Any]]]:
    """Arm -> its runs, of the seeds that every arm has."""
    pairs = {arm: chosen(folder, task, arm) for arm in task.arms}
    paths = {
        arm: [folder / name_of(arm, *pair, seed) for seed in range(task.seeds)] for arm, pair in pairs.items() if pair
    }
    seeds = [seed for seed in range(task.seeds) if all(one[seed].exists() for one in paths.values())]
    return {arm: [read(one[seed]) for seed in seeds] for arm, one in paths.items()}


def bootstrap(difference: Floats, level: float) -> float:
    """A quantile of the mean of (seeds, rows), both drawn anew 4000 times.

    Reference: Owen: The pigeonhole bootstrap (Annals of Applied Statistics 2007).
    """
    random = np.random.default_rng(0)
    seeds, rows = difference.shape
    means = []
    for _ in range(4000):
        among_seeds = np.bincount(random.integers(0, seeds, seeds), minlength=seeds) / seeds
        among_rows = np.bincount(random.integers(0, rows, rows), minlength=rows) / rows
        means.append(among_seeds @ difference @ among_rows)
    return float(np.quantile(means, level))


def against(runs: dict[str, list[dict[str, Any]]], arm: str, base: str, what: str) -> Floats:
    """Paired differences (seeds, test rows)."""
    ours, theirs = (np.array([one[what] for one in runs[name]], np.float64) for name in (arm, base))
    return np.asarray(ours - theirs)


def seconds_to(curves: Sequence[Sequence[float]], target: float, epoch: float) -> float:
    """The median time until a validation NLL is reached; infinite where most seeds never reach it."""
    firsts = [next((i + 1 for i, nll in enumerate(curve) if nll <= target), math.inf) for curve in curves]
    return float(np.median(firsts)) * epoch


def report(folder: Path, task: Task) -> Iterator[str]:
    """Tables, as docs/batchwise.md has them."""
    runs = finished(folder, task)
    clock_path = folder / "clock.json"
    epoch = read(clock_path) if clock_path.exists() else {}
    yield f"{len(runs['iid'])} seeds, {len(runs['iid'][0]['error'])} test rows"
    columns = ["arm", "rate, decay", "error %", "NLL", "error minus iid, points", "NLL minus iid", "s per epoch"]
    columns += [f"s to NLL {target}" for target in task.targets]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for arm, found in runs.items():
        error, nll = (np.mean([np.mean(one[what]) for one in found]) for what in ("error", "nll"))
        cells = [arm, str(chosen(folder, task, arm)), f"{100 * error:.2f}", f"{nll:.4f}"]
        for what, scale, digits in (("error", 100, 2), ("nll", 1, 4)):
            if arm == "iid":
                cells.append("")
                continue
            paired = scale * against(runs, arm, "iid", what)
            low, high = bootstrap(paired, 0.025), bootstrap(paired, 0.975)
            cells.append(f"{paired.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        curves = [[nll for nll, _ in one["curve"]] for one in found]
        cells.append(f"{epoch[arm]:.2f}" if epoch else "")
        cells += [f"{seconds_to(curves, target, epoch.get(arm, math.nan)):.0f}" for target in task.targets]
        yield "| " + " | ".join(cells) + " |"
    for arm in (arm for arm in runs if arm.startswith("G=")):
        bound = bootstrap(100 * against(runs, arm, "iid", "error"), 0.95)
        verdict = "not inferior" if bound < 0.1 else "not shown to be non-inferior"
        yield f"{arm} at 0.1 points: error at most {bound:+.3f} above iid (one-sided 95 %): {verdict}"


def plot(folder: Path, task: Task, path: Path) -> None:
    """Validation NLL against seconds, the median of the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    runs, epoch = finished(folder, task), read(folder / "clock.json")
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for arm, found in runs.items():
        curve = np.median([[nll for nll, _ in one["curve"]] for one in found], axis=0)
        seconds = epoch[arm] * np.arange(1, len(curve) + 1)
        axes.plot(seconds, curve, marker="o", markersize=3, label=arm)
    axes.set(xlabel="seconds of training (2 threads)", ylabel="validation NLL, nats (median of the seeds)")
    axes.set(yscale="log", xscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data-dir", type=Path, help="MNIST's four files, or the folder of the wines' data.txt")
    parser.add_argument("--share", default="0/1", help="this process of so many, each on one thread")
    parser.add_argument("--arms", type=lambda text: tuple(text.split(",")))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    named = {name: getattr(asked, name) for name in ("arms", "epochs", "rate") if getattr(asked, name)}
    task = replace(TASKS[asked.task], **named)
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.report or asked.plot:
        print("\n".join(report(asked.folder, task)))
        if asked.plot:
            plot(asked.folder, task, asked.plot)
        return
    rows = rows_of(asked.task, asked.data_dir)
    if asked.clock:
        torch.set_num_threads(2)
        clock(asked.folder, task, rows)
        return
    number, count = map(int, asked.share.split("/"))
    torch.set_num_threads(1 if count > 1 else 2)
    train(asked.folder, task, rows, (number, count))


if __name__ == "__main__":
    main()
