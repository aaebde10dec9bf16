"""Does an ensemble of sub-networks know more than one pass where the data move away: MNIST, rotated.

Usage: puredrop compare mnist --data-dir DIR --arms none,dropout,networks --seeds 5 --out RUN
       python benchmarks/rotated_mnist.py RUN --data-dir DIR [--json FILE] [--plot FILE]

Takes the networks that `compare` has trained: with dropout, without, and five without dropout for each seed. Each way
of predicting gets a temperature of its own, fitted on the validation rows as they are; then the test rows are turned
further and further. Differences are over seeds and rows, as in `compare`.

Protocol after Ovadia et al.: Can you trust your model's uncertainty? (NeurIPS 2019), with the temperature that Ashukha
et al.: Pitfalls of in-domain uncertainty estimation (ICLR 2020) ask for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import puredrop
from puredrop.compare.data import load
from puredrop.compare.evaluation import selective_prediction
from puredrop.compare.results import load_results
from puredrop.ensemble import fit_temperature
from puredrop.report.intervals import Difference, paired_difference

ANGLES = (0, 15, 30, 45, 60, 75, 90)
MEMBERS = 100
WAYS = ("without dropout", "one pass", "members", "five networks")
DOUBTS = {  # what stands for "not sure": of which way of predicting, and which number
    "one pass, largest probability": ("one pass", "top"),
    "one pass, entropy": ("one pass", "entropy"),
    "members, largest probability": ("members", "top"),
    "members, entropy": ("members", "entropy"),
    "members, mutual information": ("members", "information"),
    "five networks, entropy": ("five networks", "entropy"),
    "five networks, mutual information": ("five networks", "information"),
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """What one way of predicting says of rows.

    Args:
        p: probabilities (rows, classes).
        information: mutual information of class and member, (rows,); 0 where one network speaks.
    """

    p: Tensor
    information: Tensor

    @staticmethod
    def of(several: Tensor) -> Said:
        """The mean of several networks, (networks, rows, classes)."""
        mean = several.mean(0)
        return Said(mean, _entropy(mean) - _entropy(several).mean(0))

    def doubt(self, kind: str) -> Tensor:
        """(rows,), high where it is not sure."""
        if kind == "information":
            return self.information
        return _entropy(self.p) if kind == "entropy" else 1 - self.p.amax(1)


def _entropy(p: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(p).sum(-1)
    return found


def turned(x: Tensor, degrees: float) -> Tensor:
    """Images (rows, 784), each turned about its middle, bilinear, black around."""
    if degrees == 0:
        return x
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, s, 0.0], [-s, c, 0.0]]).expand(len(x), 2, 3)
    images = x.reshape(-1, 1, 28, 28)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).reshape(len(x), -1)


class Networks:
    """All networks of a run of `compare`."""

    def __init__(self, run: Path) -> None:
        found = load_results(run / "results.json")
        self.shape, self.seeds = found["identity"], int(found["identity"]["seeds"])
        self.weights = {name: load_file(run / f"weights-{name}.safetensors") for name in found["arms"]}

    def network(self, arm: str, number: int) -> nn.Sequential:
        """As anybody would write it."""
        hidden: list[int] = self.shape["hidden"]
        layers: list[nn.Module] = []
        for (a, b), p in zip(itertools.pairwise([784, *hidden]), self.shape["rates"], strict=True):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(p)]
        model = nn.Sequential(*layers, nn.Linear(hidden[-1], 10)).eval()
        model.load_state_dict({name: value[number] for name, value in self.weights[arm].items()})
        return model

    def ways(self, seed: int) -> dict[str, Callable[[Tensor], Said]]:
        """Ways of predicting, of one seed."""
        none, dropout = (self.network(arm, seed) for arm in ("none", "dropout"))
        others = [self.network("networks", number) for number in range(seed, 4 * self.seeds, self.seeds)]
        ensemble = puredrop.DropoutEnsemble(dropout, seed=seed)

        def passes(*models: nn.Module) -> Callable[[Tensor], Said]:
            return lambda x: Said.of(torch.stack([model(x).double().softmax(1) for model in models]))

        def members(x: Tensor) -> Said:
            found = ensemble.predict(x, members=MEMBERS, keep=0)
            assert found.mutual_information is not None
            return Said(found.mean, found.mutual_information)

        ways = [passes(none), passes(dropout), members, passes(none, *others)]
        return dict(zip(WAYS, ways, strict=True))


@dataclass
class Tables:
    """What is measured at one angle: by name (seeds, rows), and the areas under ROC curves (seeds,)."""

    nll: dict[str, Floats]
    heated: dict[str, Floats]
    error: dict[str, Floats]
    rejected: dict[str, Floats]
    detection: dict[str, Floats]


def measure(networks: Networks, folder: Path) -> dict[int, Tables]:
    """All seeds, ways and angles."""
    data = load("mnist", folder)
    parts: dict[int, list[dict[str, dict[str, Any]]]] = {angle: [] for angle in ANGLES}
    for seed in range(networks.seeds):
        ways = networks.ways(seed)
        heat = {name: fit_temperature(way(data.validation.x).p, data.validation.y) for name, way in ways.items()}
        print(f"seed {seed}: temperatures {', '.join(f'{n} {t.value:.2f}' for n, t in heat.items())}", flush=True)
        for angle in ANGLES:
            x, y = turned(data.test.x, angle), data.test.y
            said = {name: way(x) for name, way in ways.items()}
            wrong = {name: (one.p.argmax(1) != y).double() for name, one in said.items()}
            doubts = {name: (said[way].doubt(kind), wrong[way]) for name, (way, kind) in DOUBTS.items()}
            parts[angle].append({
                "nll": {name: _nll(one.p, y) for name, one in said.items()},
                "heated": {name: _nll(heat[name](one.p), y) for name, one in said.items()},
                "error": {name: one.numpy() for name, one in wrong.items()},
                "rejected": {
                    name: selective_prediction(*(t.numpy()[None] for t in pair)).area[0]
                    for name, pair in doubts.items()
                },
                "detection": {name: float(roc_auc_score(wrong, doubt)) for name, (doubt, wrong) in doubts.items()},
            })  # fmt: skip
    return {
        angle: Tables(**{what: _stacked([one[what] for one in found]) for what in found[0]})
        for angle, found in parts.items()
    }


def _nll(p: Tensor, y: Tensor) -> Floats:
    found: Floats = -p.gather(1, y[:, None]).squeeze(1).clamp_min(1e-300).log().numpy()
    return found


def _stacked(seeds: list[dict[str, Any]]) -> dict[str, Floats]:
    return {name: np.array([one[name] for one in seeds]) for name in seeds[0]}


def report(found: dict[int, Tables]) -> Iterator[str]:
    """Tables, as docs/ensemble.md has them."""
    yield from _table("error, %", found, "error", 100, 2)
    yield from _table("NLL, nats", found, "nll", 1, 3)
    yield from _table("NLL after each one's temperature, nats", found, "heated", 1, 3)
    yield from _table("error over shares kept (area under risk-coverage), %", found, "rejected", 100, 2)
    yield from _table("error detection (area under ROC), %", found, "detection", 100, 1)
    yield "Differences [95 % interval], bold where it excludes 0:"
    yield ""
    yield f"| | {' | '.join(f'{angle}°' for angle in found)} |"
    yield "|---|" + "---|" * len(found)
    for title, what, before, after, scale, digits in COMPARED:
        cells = [_cell(_difference(getattr(one, what), before, after), scale, digits) for one in found.values()]
        yield f"| {title} | {' | '.join(cells)} |"


COMPARED = (
    ("NLL after temperature, members minus one pass", "heated", "one pass", "members", 1, 3),
    ("NLL after temperature, five networks minus members", "heated", "members", "five networks", 1, 3),
    ("error, members minus one pass, points", "error", "one pass", "members", 100, 2),
    ("risk-coverage, members' entropy minus one pass' largest probability, points", "rejected",
     "one pass, largest probability", "members, entropy", 100, 2),
    ("risk-coverage, members' mutual information minus one pass' largest probability, points", "rejected",
     "one pass, largest probability", "members, mutual information", 100, 2),
    ("risk-coverage, five networks' entropy minus members' entropy, points", "rejected", "members, entropy",
     "five networks, entropy", 100, 2),
)  # fmt: skip


def _difference(tables: dict[str, Floats], before: str, after: str) -> Difference:
    return paired_difference(tables[after] - tables[before])


def _cell(found: Difference, scale: float, digits: int) -> str:
    text = f"{scale * found.estimate:+.{digits}f} [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"
    return f"**{text}**" if found.excludes_zero else text


def _table(title: str, found: dict[int, Tables], what: str, scale: float, digits: int) -> Iterator[str]:
    yield f"| {title} | {' | '.join(f'{angle}°' for angle in found)} |"
    yield "|---|" + "---|" * len(found)
    for name in getattr(next(iter(found.values())), what):
        cells = [f"{scale * getattr(one, what)[name].mean():.{digits}f}" for one in found.values()]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def plot(found: dict[int, Tables], path: Path) -> None:
    """How NLL after temperature and error over shares kept differ from one pass, with intervals, against the angle."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, sides = plt.subplots(1, 2, figsize=(11, 4.2))
    base = "one pass, largest probability"
    doubts = ("members, entropy", "members, mutual information", "five networks, entropy")
    drawn = (("heated", "one pass", ("members", "five networks"), 1), ("rejected", base, doubts, 100))
    for axes, (what, against, names, scale) in zip(sides, drawn, strict=True):
        for shift, name in enumerate(names):
            differences = [_difference(getattr(one, what), against, name) for one in found.values()]
            middle = np.array([scale * one.estimate for one in differences])
            ends = [[scale * getattr(one, end) for one in differences] for end in ("low", "high")]
            at = np.array(list(found)) + 1.5 * shift
            axes.errorbar(at, middle, np.abs(ends - middle), marker="o", markersize=4, capsize=3, label=name)
        axes.axhline(0, color="black", linewidth=1, linestyle="--", label=against)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        axes.set(xlabel="rotation, degrees", xticks=list(found))
    sides[0].set(ylabel="test NLL after temperature, minus one pass's, nats")
    sides[1].set(ylabel="error over shares kept, minus one pass's, points")
    figure.savefig(path, bbox_inches="tight", dpi=120)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of compare, with --arms none,dropout,networks")
    parser.add_argument("--data-dir", type=Path, required=True, help="MNIST's four files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    found = measure(Networks(asked.run), asked.data_dir)
    print("\n".join(report(found)))
    if asked.json:
        means = {
            angle: {
                what: {name: table.mean(-1).tolist() for name, table in tables.items()}
                for what, tables in vars(one).items()
            }
            for angle, one in found.items()
        }
        asked.json.write_text(json.dumps(means, indent=1))
    if asked.plot:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
