"""The reference figures of the theory, measured again: each with its spread over seeds, beside what was published here.

Usage: python benchmarks/theory.py [--seeds N] [--epochs N] [--json FILE]

Nets are trained as `puredrop compare` trains them on the digits (Adam, each seed at its best validation epoch), the
seeds of an arm as one batched model; what is measured comes from `puredrop.explain`, on the test rows, but for the
penalty, which is that of the training rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puredrop import explain
from puredrop.compare.data import Data, DataSplit, load
from puredrop.compare.network import Network
from puredrop.compare.training import Arm, train

Rows = list[tuple[str, str, list[float]]]

DECAYS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Of the nets with weight decay, among which the one is chosen that is right as often as the net with dropout."""

LAST = "5"
"""The second dropout layer of two."""
DAMAGE = {
    "random": "75 % of units removed",
    "largest": "5 % largest activations removed (not trained on)",
    "noise": "noise of their size added (not trained on)",
}


def nets(
    data: Data, hidden: tuple[int, ...], rates: tuple[float, ...], seeds: int, epochs: int, weight_decay: float = 0.0
) -> list[nn.Sequential]:
    """Trained ones, a module for each seed."""
    sizes = (data.train.x.shape[1], *hidden, data.task.outputs)
    network = Network(sizes, rates)
    arm = Arm.start(network, range(seeds), data.train.x, dropout=any(rates), groups=None)
    train(arm, network, data, range(seeds), epochs, weight_decay=weight_decay)
    found = []
    for seed in range(seeds):
        layers: list[nn.Module] = []
        for before, after, rate in zip(sizes, hidden, rates, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(rate)]
        net = nn.Sequential(*layers, nn.Linear(hidden[-1], sizes[-1]))
        net.load_state_dict({name: value[seed] for name, value in arm.best.items()})
        found.append(net.eval())
    return found


def penalties(data: Data, seeds: int, epochs: int) -> Rows:
    """Gauss-Newton over the truth, by the rate."""
    rows: Rows = []
    for p, published in ((0.5, ".39"), (0.2, ".58"), (0.1, ".70")):
        found = [
            explain.penalty(net, data.train.x, data.train.y, F.cross_entropy).ratio
            for net in nets(data, (64, 64), (p, p), seeds, epochs)
        ]
        rows.append((f"Gauss-Newton over truth, 64-64, p = {p:g}", published, found))
    return rows


def coadaptation(data: Data, seeds: int, epochs: int) -> Rows:
    """Of nets without dropout, with p = .5, and with the weight decay that makes them right as often as that."""
    rows: Rows = []
    plain, dropped = (nets(data, (64, 64), (p, p), seeds, epochs) for p in (0.0, 0.5))
    decay, decayed = matched(data, dropped, seeds, epochs)
    arms = [
        ("none", plain, (".53", ".51", ".29", ".36")),
        ("dropout", dropped, (".845", ".29", ".39", ".34")),
        (f"weight decay {decay:g}", decayed, ("", "", "", "")),
    ]
    for arm, group, published in arms:
        last = [explain.coadaptation(net, data.test.x, data.test.y, shares=(0.75,), at=[LAST]) for net in group]
        both = [  # of these the interaction share, which is what members are for, is not shown
            explain.coadaptation(
                net, data.test.x, data.test.y, shares=(0.75,), top_fractions=(0.05,), noises=(1.0,), members=16
            )
            for net in group
        ]
        values = [
            ("right with 75 % of its units removed", [one.curves["random"].score[0] for one in last]),
            ("interaction share 1 - S1", [one.interaction for one in last]),
            ("activations that are 0", [one.sparsity for one in last]),
            ("mean absolute correlation", [one.correlation for one in last]),
        ]
        rows.append((f"right, 64-64, {arm}", "", [right(net, data.test) for net in group]))
        rows += [
            (f"last hidden layer: {name}, 64-64, {arm}", said, value)
            for (name, value), said in zip(values, published, strict=True)
        ]
        rows += [
            (f"both hidden layers: right with {what}, 64-64, {arm}", "", [one.curves[kind].score[0] for one in both])
            for kind, what in DAMAGE.items()
        ]
    return rows


def matched(data: Data, dropped: list[nn.Sequential], seeds: int, epochs: int) -> tuple[float, list[nn.Sequential]]:
    """The weight decay, and its nets, which on validation rows are right as often as those with dropout, or nearest."""

    def score(group: list[nn.Sequential]) -> float:
        return statistics.fmean(right(net, data.validation) for net in group)

    aim = score(dropped)
    arms = {decay: nets(data, (64, 64), (0.0, 0.0), seeds, epochs, decay) for decay in DECAYS}
    for decay, group in arms.items():
        print(f"weight decay {decay:g}: {score(group):.4f} right on validation rows; dropout {aim:.4f}")
    best = min(arms, key=lambda decay: abs(score(arms[decay]) - aim))
    return best, arms[best]


@torch.no_grad()
def right(net: nn.Sequential, rows: DataSplit) -> float:
    """Share of rows whose class is right."""
    return float((net(rows.x).argmax(1) == rows.y).double().mean())


def ablation(data: Data, seeds: int, epochs: int) -> Rows:
    """Of compare's network."""
    rows: Rows = []
    for arm, rates, published in (("none", (0.0, 0.0), ".76"), ("dropout", (0.5, 0.3), ".91")):
        found = [
            explain.coadaptation(net, data.test.x, data.test.y, shares=(0.75,), members=16).curves["random"].score[0]
            for net in nets(data, (512, 256), rates, seeds, epochs)
        ]
        rows.append((f"right with 75 % of units removed, 512-256, {arm}", published, found))
    return rows


def margin() -> Rows:
    """The quadratic form of a logistic regression at margin 6, on eight equal features; it has no seeds."""
    found = explain.margins(torch.ones(2, 8), torch.ones(8), 0.5, (6.0,)).ratio
    return [("quadratic form over truth, logistic, 8 equal features, margin 6, p = .5", ".37", list(found))]


def signs_and_labels(data: Data, seeds: int, epochs: int) -> Rows:
    """Variance of a sampled label's estimate of Gauss-Newton over that of signs, of both sites together."""
    found = []
    for net in nets(data, (64, 64), (0.5, 0.5), seeds, epochs):
        x = data.test.x[:256]
        values = {kind: torch.tensor([_estimate(net, x, kind, number) for number in range(200)]) for kind in range(2)}
        found.append(float(values[1].var() / values[0].var()))
    return [("variance of sampled labels over that of signs", "8 to 19", found)]


def _estimate(net: nn.Sequential, x: Tensor, kind: int, number: int) -> float:
    """ρ/2 Σ (h∘g)² at both sites, ρ = 1; g from signs (0) or from a sampled label (1)."""
    generator = torch.Generator().manual_seed(number)
    inner = torch.relu(net[0](x)).detach().requires_grad_()
    outer = torch.relu(net[3](inner))
    z = net[6](outer)
    pi = z.detach().softmax(1)
    if kind == 0:
        noise = 2 * torch.randint(2, pi.shape, generator=generator) - 1
        half = pi.sqrt() * noise
        slope = half - pi * half.sum(1, keepdim=True)
    else:
        label = torch.multinomial(pi, 1, generator=generator).squeeze(1)
        slope = F.one_hot(label, pi.shape[1]) - pi
    slopes = torch.autograd.grad(z, [inner, outer], slope)
    return (
        0.5
        * sum(float((a * b).square().sum()) for a, b in zip((inner.detach(), outer.detach()), slopes, strict=True))
        / len(x)
    )


def table(rows: Rows) -> str:
    """As Markdown: mean and standard deviation over seeds."""
    lines = ["| figure | theory | here, mean ± sd over seeds |", "|---|---|---|"]
    lines += [f"| {name} | {said} | {_spread(values)} |" for name, said, values in rows]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data, seeds, epochs = load("digits"), arguments.seeds, arguments.epochs
    rows = [
        *penalties(data, seeds, epochs),
        *coadaptation(data, seeds, epochs),
        *ablation(data, seeds, epochs),
        *margin(),
        *signs_and_labels(data, seeds, epochs),
    ]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}, {seeds} seeds, {epochs} epochs")
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([{"figure": a, "theory": b, "values": c} for a, b, c in rows], indent=1))


if __name__ == "__main__":
    main()
