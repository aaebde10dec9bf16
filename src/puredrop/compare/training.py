"""Training of one arm: all seeds as one batched model, each stopped early on its own validation rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from puredrop.compare.data import Data
from puredrop.compare.network import Model, Parameters
from puredrop.compare.processes import Worker
from puredrop.rng import Key

__all__ = ["BATCH", "LEARNING_RATE", "PATIENCE", "Arm", "train"]

LEARNING_RATE = 2e-3
BATCH = 128
PATIENCE = 12


@dataclass
class Arm:
    """One arm in training, at the end of an epoch: everything that its future depends on.

    Args:
        dropout: whether masks are drawn.
        groups: number of groups of a batch that share their masks; None where each row has its own mask.
        current: parameters after the last epoch.
        best: parameters of each seed's best epoch so far.
        moments: Adam's running means.
        epoch: number of epochs trained.
        best_epoch: of each seed.
        training_loss, validation_loss: for each epoch, a value per seed; the training loss is taken with masks.
        seconds: training time of each epoch, for all seeds together.
    """

    dropout: bool
    current: Parameters
    best: Parameters
    moments: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    best_epoch: list[int] = field(default_factory=list)
    training_loss: list[list[float]] = field(default_factory=list)
    validation_loss: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    groups: int | None = None

    @staticmethod
    def start(network: Model, seeds: Sequence[int], like: Tensor, *, dropout: bool, groups: int | None = None) -> Arm:
        """Return an arm before its first step; arms of one network and seeds start from the same weights.

        Weights are drawn on the CPU in float32, then take the device and dtype of `like`, the features.
        """
        drawn = network.initial(seeds)
        initial = {
            name: value.to(like.device, like.dtype if value.is_floating_point() else None)
            for name, value in drawn.items()
        }
        best = {name: value.clone() for name, value in initial.items()}
        return Arm(dropout, initial, best, best_epoch=[0] * len(seeds), groups=groups)

    def finished(self, epochs: int) -> bool:
        """Return whether no seed has improved for `PATIENCE` epochs, or the epochs are used up."""
        return self.epoch >= epochs or (self.epoch > 0 and self.epoch - max(self.best_epoch) >= PATIENCE)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by a flat name, for a checkpoint."""
        groups = {"current": self.current, "best": self.best, "moments": self.moments}
        return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}

    def state(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON holds it."""
        names = ("dropout", "groups", "epoch", "best_epoch", "training_loss", "validation_loss", "seconds")
        return {name: getattr(self, name) for name in names}

    def part(self, seeds: slice) -> Arm:
        """Return the arm of some of the seeds, as a copy."""

        def of(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value if _is_step(name) else value[seeds].clone() for name, value in values.items()}

        return Arm(
            self.dropout,
            of(self.current),
            of(self.best),
            of(self.moments),
            self.epoch,
            self.best_epoch[seeds],
            [losses[seeds] for losses in self.training_loss],
            [losses[seeds] for losses in self.validation_loss],
            groups=self.groups,
        )

    def take_over(self, part: Arm, worker: Worker) -> None:
        """Take an epoch over from the parts that processes have trained.

        Args:
            part: the part of this process.
            worker: this process.
        """
        count = len(self.best_epoch)
        for name, value in part.moments.items():
            if _is_step(name):
                self.moments[name] = value
            elif name not in self.moments:
                self.moments[name] = value.new_empty(count, *value.shape[1:])
        whole, parts = self.tensors(), part.tensors()
        for name in sorted(parts):
            if not _is_step(name):
                worker.gather(whole[name], parts[name].detach())
        table = torch.empty(count, 3, dtype=torch.float64)
        worker.gather(
            table, torch.tensor([part.training_loss[-1], part.validation_loss[-1], part.best_epoch]).double().T
        )
        training, validation, best = table.T.tolist()
        self.training_loss.append(training)
        self.validation_loss.append(validation)
        self.best_epoch = [int(epoch) for epoch in best]
        self.seconds.append(part.seconds[-1])
        self.epoch = part.epoch

    @staticmethod
    def restore(tensors: dict[str, Tensor], state: dict[str, Any], device: torch.device) -> Arm:
        """Return the arm that `tensors` and `state` describe."""
        groups: dict[str, Any] = {"current": {}, "best": {}, "moments": {}}
        for name, value in tensors.items():
            group, _, key = name.partition("/")
            # Adam keeps its step on the CPU.
            groups[group][key] = value if _is_step(key) else value.to(device)
        return Arm(**groups, **state)


def _is_step(name: str) -> bool:
    """Return whether the name is that of Adam's step, which all seeds share."""
    return name.endswith("/step")


def train(
    arm: Arm,
    network: Model,
    data: Data,
    seeds: Sequence[int],
    epochs: int,
    on_epoch: Callable[[Arm], None] = lambda arm: None,
    worker: Worker | None = None,
    weight_decay: float = 0.0,
) -> None:
    """Train an arm to its end, from wherever it stands.

    Rows, order and masks of a step are functions of seed and step alone, so an interruption does not show.

    Args:
        arm: changed in place.
        network: the shape of the network.
        data: training and validation rows; the test rows are not used.
        seeds: one number per copy.
        epochs: the largest number of epochs.
        on_epoch: called with the arm after each epoch.
        worker: this process, where several train one arm; each has all of the arm after each epoch.
        weight_decay: decoupled weight decay (AdamW).
    """
    if not arm.finished(epochs):
        _train(arm, network, data, seeds, epochs, on_epoch, worker or Worker(), weight_decay)
    arm.current, arm.moments = {}, {}  # only the best epoch counts from here on


def _train(
    arm: Arm,
    network: Model,
    data: Data,
    seeds: Sequence[int],
    epochs: int,
    on_epoch: Callable[[Arm], None],
    worker: Worker,
    weight_decay: float,
) -> None:
    own_seeds = worker.seeds(len(seeds))
    part = arm if worker.size == 1 else arm.part(own_seeds)
    trained = network.trainable(part.current)
    optimizer = torch.optim.AdamW(
        [value.requires_grad_() for value in trained.values()], weight_decay=weight_decay, fused=True
    )
    _restore_moments(optimizer, part, list(trained))
    while not arm.finished(epochs):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * part.epoch / epochs)) / 2
        started = time.perf_counter()
        loss = _one_epoch(part, network, data, seeds[own_seeds], own_seeds.start, optimizer)
        part.seconds.append(time.perf_counter() - started)
        part.training_loss.append(loss)
        part.epoch += 1
        _keep_the_best(part, network, data)
        part.moments = _moments(optimizer, list(trained))
        if worker.size > 1:
            arm.take_over(part, worker)
        on_epoch(arm)


def _one_epoch(
    arm: Arm, network: Model, data: Data, seeds: Sequence[int], first: int, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Train on every row once, each seed in an order of its own, and return the mean loss of each seed."""
    rows = data.train
    order = torch.stack([_shuffled(Key(seed).fold_in("order").fold_in(arm.epoch), len(rows.y)) for seed in seeds])
    total = torch.zeros(len(seeds), device=rows.x.device, dtype=rows.x.dtype)
    batches = order.split(BATCH, dim=1)
    for i, batch in enumerate(batches):
        step = arm.epoch * len(batches) + i
        key = Key(0).fold_in("compare").fold_in(step) if arm.dropout else None
        outputs = network.outputs(arm.current, rows.x[batch], key, training=True, first=first, groups=arm.groups)
        losses = data.task.loss(outputs, rows.y[batch])
        optimizer.zero_grad()
        losses.mean(1).sum().backward()  # a sum over seeds: each has the gradient it would have alone
        optimizer.step()
        total += losses.detach().sum(1)
    return (total / len(rows.y)).tolist()


def _shuffled(key: Key, rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(int(key)))


@torch.no_grad()
def _keep_the_best(arm: Arm, network: Model, data: Data) -> None:
    rows = data.validation
    x = rows.x.expand(len(arm.best_epoch), -1, -1)
    losses = data.task.loss(network.outputs(arm.current, x), rows.y).mean(1).tolist()
    for seed, value in enumerate(losses):
        if value < min((past[seed] for past in arm.validation_loss), default=float("inf")):
            arm.best_epoch[seed] = arm.epoch
            for name, best in arm.best.items():
                best[seed] = arm.current[name][seed]
    arm.validation_loss.append(losses)


def _moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return Adam's state by flat names."""
    state = optimizer.state_dict()["state"]
    return {f"{name}/{kind}": v for i, name in enumerate(names) for kind, v in state[i].items()}


def _restore_moments(optimizer: torch.optim.Optimizer, arm: Arm, names: list[str]) -> None:
    if not arm.moments:
        return
    state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
    for i, name in enumerate(names):
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            state[i][kind] = arm.moments[f"{name}/{kind}"]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
