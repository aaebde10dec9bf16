"""MC dropout on the UCI regressions: RMSE and log likelihood beside what the paper's authors logged.

Usage: python benchmarks/uci.py FOLDER --data-dir DIR [--sets yacht,energy]   train and predict what is missing
       python benchmarks/uci.py FOLDER --report                               tables, as docs/ensemble.md has them

DIR holds the authors' data, splits, rates and precisions. Everything done is a file in FOLDER, so that a killed run
goes on where it was: at most the nets of one rate are trained again.

Protocol (Gal and Ghahramani: Dropout as a Bayesian approximation, ICML 2016, and their code): dropout on inputs and on
50 hidden ReLU units, both columns and target standardised by the training rows, squared error with an L2 of
(1e-2)^2 (1 - p) / (2 N tau), Adam at 1e-3, batches of 128, 4000 epochs ("100x"); rate and precision chosen by log
likelihood on the last fifth of the training rows, then trained anew on all of them; 10 000 passes.

Two things differ: the nets of one rate are trained side by side (all splits and precisions at once; they meet the rows
of their split in the same order, under masks of their own), and the choice is made with 1000 passes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from scipy import stats
from torch import Tensor, nn

import puredrop
from puredrop import Key
from puredrop._files import write
from puredrop.functional import dropout, relu_dropout

HIDDEN, BATCH, LENGTH_SCALE = 50, 128, 1e-2
PASSES, CHOOSING_PASSES = 10_000, 1000
MARGINS = {"rmse": 0.1, "likelihood": 0.1}
"""What counts as the same: a tenth of the published RMSE, a tenth of a nat."""

PUBLISHED = {  # RMSE of MC, its standard error, log likelihood, its standard error, RMSE of the "standard" pass
    "concrete": (4.83, 0.16, -2.94, 0.02, 5.45),
    "energy": (0.54, 0.01, -1.21, 0.01, 0.97),
    "kin8nm": (0.079, 0.001, 1.136, 0.007, 0.092),
    "power-plant": (4.01, 0.04, -2.81, 0.01, 4.18),
    "wine-quality-red": (0.62, 0.01, -0.93, 0.01, 0.66),
    "yacht": (0.67, 0.05, -1.25, 0.02, 1.23),
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Net:
    """One net to train: of a split, at a rate and a precision."""

    split: int
    p: float
    tau: float


@dataclass(frozen=True)
class Rows:
    """Rows of all splits: x (splits, rows, columns), y (splits, rows), in the units of the data."""

    x: Tensor
    y: Tensor

    def part(self, rows: slice) -> Rows:
        """The same rows of every split."""
        return Rows(self.x[:, rows], self.y[:, rows])


@dataclass(frozen=True)
class Scale:
    """Means and deviations of the training rows of all splits."""

    x_mean: Tensor
    x_deviation: Tensor
    y_mean: Tensor
    y_deviation: Tensor

    @staticmethod
    def of(rows: Rows) -> Scale:
        """Of these rows."""
        deviation = rows.x.std(1, correction=0)
        return Scale(rows.x.mean(1), deviation.where(deviation > 0, 1), rows.y.mean(1), rows.y.std(1, correction=0))

    def inputs(self, rows: Rows) -> Tensor:
        """Columns in units of their deviations."""
        return ((rows.x - self.x_mean[:, None]) / self.x_deviation[:, None]).float()

    def targets(self, rows: Rows) -> Tensor:
        """Targets in units of their deviation."""
        return ((rows.y - self.y_mean[:, None]) / self.y_deviation[:, None]).float()


class Data:
    """A data set with its splits and what the authors tried."""

    def __init__(self, folder: Path) -> None:
        table = np.loadtxt(folder / "data.txt")
        columns = np.loadtxt(folder / "index_features.txt", dtype=int)
        target = int(np.loadtxt(folder / "index_target.txt"))
        self.splits = int(np.loadtxt(folder / "n_splits.txt"))
        self.rates = np.loadtxt(folder / "dropout_rates.txt").tolist()
        self.taus = np.loadtxt(folder / "tau_values.txt").tolist()
        self.epochs = 100 * int(np.loadtxt(folder / "n_epochs.txt"))
        parts = {}
        for name in ("train", "test"):
            rows = [np.loadtxt(folder / f"index_{name}_{i}.txt", dtype=int) for i in range(self.splits)]
            parts[name] = Rows(
                torch.tensor(np.stack([table[one][:, columns] for one in rows])),
                torch.tensor(np.stack([table[one, target] for one in rows])),
            )
        self.train, self.test = parts["train"], parts["test"]


class Weights:
    """Nets side by side, W1 (nets, columns, hidden) and so on; as Keras starts them (Glorot, biases 0)."""

    def __init__(self, nets: int, columns: int, generator: torch.Generator) -> None:
        def glorot(a: int, b: int) -> Tensor:
            return (2 * torch.rand(nets, a, b, generator=generator) - 1) * math.sqrt(6 / (a + b))

        self.w1, self.b1 = glorot(columns, HIDDEN), torch.zeros(nets, 1, HIDDEN)
        self.w2, self.b2 = glorot(HIDDEN, 1), torch.zeros(nets, 1, 1)

    def gradients(self, x: Tensor, y: Tensor, p: float, l2: Tensor, key: Key) -> None:
        """Of the sum of all nets' losses; x (nets, batch, columns), y (nets, batch, 1), l2 (nets, 1, 1).

        By hand: autograd takes twice as long for 60 nets (7.7 ms a step against 3.8).
        """
        x = dropout(x, p, key=key.fold_in(0))
        hidden = relu_dropout(torch.baddbmm(self.b1, x, self.w1), p, key=key.fold_in(1))
        error = (torch.baddbmm(self.b2, hidden, self.w2) - y).mul_(2 / y.shape[1])
        behind = torch.bmm(error, self.w2.transpose(1, 2) / (1 - p))
        behind = torch.ops.aten.threshold_backward(behind, hidden, 0)
        self.w1.grad = torch.baddbmm(2 * l2 * self.w1, x.transpose(1, 2), behind)
        self.b1.grad = behind.sum(1, keepdim=True)
        self.w2.grad = torch.baddbmm(2 * l2 * self.w2, hidden.transpose(1, 2), error)
        self.b2.grad = error.sum(1, keepdim=True)

    def module(self, i: int, p: float) -> nn.Sequential:
        """Net i as anybody would write it."""
        first, last = nn.Linear(*self.w1.shape[1:]), nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            first.weight.copy_(self.w1[i].T)
            first.bias.copy_(self.b1[i, 0])
            last.weight.copy_(self.w2[i].T)
            last.bias.copy_(self.b2[i, 0])
        return nn.Sequential(nn.Dropout(p), first, nn.ReLU(), nn.Dropout(p), last)


def trained(path: Path, nets: Sequence[Net], rows: Rows, epochs: int, seed: int) -> Weights:
    """Nets of one rate, from the file if they are there; their loss is each net's own."""
    generator = torch.Generator().manual_seed(seed)
    found = Weights(len(nets), rows.x.shape[2], generator)
    if path.exists():
        vars(found).update(load_file(path))
        return found
    scale, count = Scale.of(rows), rows.y.shape[1]
    x, y = scale.inputs(rows), scale.targets(rows)[..., None]
    splits = torch.tensor([net.split for net in nets])
    present, where = splits.unique(return_inverse=True)
    p = nets[0].p
    l2 = torch.tensor([LENGTH_SCALE**2 * (1 - p) / (2 * count * net.tau) for net in nets])[:, None, None]
    optimizer = torch.optim.Adam(list(vars(found).values()), lr=1e-3, fused=True)
    key = Key(seed)
    for epoch in range(epochs):
        order = torch.rand(len(present), count, generator=generator).argsort(1)
        these = present[:, None], order
        batches = zip(x[these].split(BATCH, 1), y[these].split(BATCH, 1), strict=True)
        for step, (some_x, some_y) in enumerate(batches):
            found.gradients(some_x[where], some_y[where], p, l2, key.fold_in(epoch).fold_in(step))
            optimizer.step()
    write(path, save(vars(found)))
    return found


class Scored(nn.Module):
    """A net that also says how likely each truth is; in the units of the data."""

    def __init__(self, net: nn.Module, tau: float, mean: float, deviation: float) -> None:
        super().__init__()
        self.net, self.tau, self.mean, self.deviation = net, tau, mean, deviation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(rows, 2): what is predicted, and the density of the truth."""
        found = self.net(x).squeeze(-1).double() * self.deviation + self.mean
        return torch.stack((found, torch.exp(-0.5 * self.tau * (y - found) ** 2)), -1)


def scores(weights: Weights, i: int, net: Net, scale: Scale, rows: Rows, passes: int) -> dict[str, float]:
    """RMSE of the members' mean, of weight scaling and of one random pass, and the mean log likelihood, of net i.

    All rows of a member share its mask: every row still meets `passes` masks drawn for it alone, in blocks that are
    balanced, and only averages of each row are used. The one random pass has masks of each row's own.
    """
    x, y = scale.inputs(rows)[net.split], rows.y[net.split]
    mean, deviation = float(scale.y_mean[net.split]), float(scale.y_deviation[net.split])
    model = Scored(weights.module(i, net.p), net.tau, mean, deviation)
    ensemble = puredrop.DropoutEnsemble(model, task=_both)
    found = ensemble.predict((x, y), members=passes, keep=0).mean
    one = puredrop.DropoutEnsemble(model, task=_both, masks="independent").predict((x, y), members=1, keep=0).mean
    likelihood = found[:, 1].log() + 0.5 * math.log(net.tau / (2 * math.pi))
    errors = {"rmse": found, "rmse_scaling": ensemble.weight_scaling((x, y)), "rmse_one": one}
    squared = {name: float((y - output[:, 0]).square().mean().sqrt()) for name, output in errors.items()}
    return {**squared, "likelihood": float(likelihood.mean())}


def _both(output: Tensor) -> Tensor:
    return output


def choose(folder: Path, data: Data) -> list[Net]:
    """For each split the rate and precision with the best log likelihood on the last fifth of the training rows."""
    count = int(0.8 * data.train.y.shape[1])
    rows, held_out = data.train.part(slice(count)), data.train.part(slice(count, None))
    tried: list[tuple[Net, float]] = []
    for number, p in enumerate(data.rates):
        nets = [Net(split, p, tau) for tau in data.taus for split in range(data.splits)]
        path = folder / f"choosing_{p}.json"
        if not path.exists():
            weights = trained(path.with_suffix(".safetensors"), nets, rows, data.epochs, 100 + number)
            scale = Scale.of(rows)
            found = [
                scores(weights, i, net, scale, held_out, CHOOSING_PASSES)["likelihood"] for i, net in enumerate(nets)
            ]
            write(path, json.dumps(found).encode())
            print(f"{folder.name}: p = {p}, mean log likelihood {np.mean(found):.3f}", flush=True)
        tried += zip(nets, json.loads(path.read_text()), strict=True)
    return [
        max((one for one in tried if one[0].split == split), key=lambda one: one[1])[0] for split in range(data.splits)
    ]


def run(folder: Path, data: Data) -> None:
    """A data set: choose, train on all training rows, and write down what the test rows say."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, scale = choose(folder, data), Scale.of(data.train)
    for number, p in enumerate(data.rates):
        nets, path = [net for net in chosen if net.p == p], folder / f"final_{p}.json"
        if not nets or path.exists():
            continue
        weights = trained(path.with_suffix(".safetensors"), nets, data.train, data.epochs, 200 + number)
        found = [
            {"split": net.split, "p": net.p, "tau": net.tau, **scores(weights, i, net, scale, data.test, PASSES)}
            for i, net in enumerate(nets)
        ]
        write(path, json.dumps(found).encode())
        print(f"{folder.name}: final nets with p = {p}: {len(nets)}", flush=True)
    sizes = {"train": data.train.y.shape[1], "test": data.test.y.shape[1]}
    write(folder / "sizes.json", json.dumps(sizes).encode())


@dataclass(frozen=True)
class Finished:
    """What the final nets of a data set said.

    Args:
        runs: one for each split.
        share: test rows for each training row.
    """

    runs: list[dict[str, Any]]
    share: float

    def values(self, what: str) -> Floats:
        """Of each split."""
        return np.array([run[what] for run in self.runs])

    def mean(self, what: str) -> str:
        """And its standard error as it was published, which takes splits for independent."""
        values = self.values(what)
        return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"

    @property
    def rates(self) -> str:
        """How often each was chosen."""
        counts = Counter(run["p"] for run in self.runs)
        return ", ".join(f"{p}: {counts[p]}" for p in sorted(counts))


def finished(folder: Path) -> Finished:
    """A data set whose nets are all trained."""
    runs = [run for path in sorted(folder.glob("final_*.json")) for run in json.loads(path.read_text())]
    sizes = json.loads((folder / "sizes.json").read_text())
    return Finished(runs, sizes["test"] / sizes["train"])


def interval(values: Floats, test_share: float, level: float) -> tuple[float, float]:
    """Ends of the interval of a mean over splits that overlap.

    Reference: Nadeau and Bengio: Inference for the generalization error (Machine Learning 2003).
    """
    error = math.sqrt((1 / len(values) + test_share) * values.var(ddof=1))
    reach = float(stats.t.ppf(level, len(values) - 1)) * error
    return float(values.mean()) - reach, float(values.mean()) + reach


def verdict(values: Floats, test_share: float, published: float, margin: float) -> str:
    """Difference to a published figure, its 90 % interval, and whether that lies within the margin.

    Reference: Schuirmann: Two one-sided tests for equivalence (J. Pharmacokinetics and Biopharmaceutics 1987).
    """
    low, high = (end - published for end in interval(values, test_share, 0.95))
    same = "the same" if -margin < low and high < margin else "not shown to be the same"
    return f"{values.mean() - published:+.3f} [{low:+.3f}, {high:+.3f}] {same}"


def report(folder: Path) -> Iterator[str]:
    """Tables, as docs/ensemble.md has them."""
    found = {name: finished(folder / name) for name in PUBLISHED if (folder / name / "sizes.json").exists()}
    columns = [
        "data",
        "RMSE, MC",
        "published",
        "difference",
        "weight scaling",
        "one random pass",
        "published, standard",
    ]
    yield from rule(columns)
    for name, runs in found.items():
        published, error, *_, standard = PUBLISHED[name]
        same = verdict(runs.values("rmse"), runs.share, published, MARGINS["rmse"] * published)
        cells = [runs.mean("rmse"), f"{published} ± {error}", same, runs.mean("rmse_scaling"), runs.mean("rmse_one")]
        yield f"| {' | '.join([name, *cells, str(standard)])} |"
    yield ""
    yield from rule(["data", "log likelihood, MC", "published", "difference", "rates chosen"])
    for name, runs in found.items():
        published, error = PUBLISHED[name][2:4]
        same = verdict(runs.values("likelihood"), runs.share, published, MARGINS["likelihood"])
        cells = [runs.mean("likelihood"), f"{published} ± {error}", same, runs.rates]
        yield f"| {' | '.join([name, *cells])} |"


def rule(columns: Sequence[str]) -> Iterator[str]:
    """The head of a table."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path, help="with a folder for each data set")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(PUBLISHED))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.report:
        print("\n".join(report(asked.folder)))
        return
    for name in asked.sets:
        run(asked.folder / name, Data(asked.data_dir / name))


if __name__ == "__main__":
    main()
