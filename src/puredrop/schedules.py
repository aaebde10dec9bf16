"""Rates that change over training or over the depth of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import ops
from puredrop.nn import DropPath, LayerDrop
from puredrop.nn.keyed import Keyed

__all__ = ["RateScheduler", "Schedule", "constant", "cosine", "curriculum", "early", "late", "linear", "over_depth"]


@dataclass(frozen=True)
class Schedule:
    """A rate as a function of progress.

    Args:
        name: what kind it is, for people.
        steps: after so many it stands still.
        at: progress in [0, 1] -> rate in [0, 1].
    """

    name: str
    steps: int
    at: Callable[[float], float]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected 1 or more (for one rate throughout use constant)")
        for progress in (0.0, 0.5, 1.0):
            ops.as_rate(self.at(progress))

    def __call__(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        return self.at(min(step / self.steps, 1.0))


def constant(p: float) -> Schedule:
    """One rate throughout.

    >>> constant(0.5)(1000)
    0.5
    """
    return Schedule("constant", 1, lambda progress: p)


def linear(start: float, end: float, steps: int = 1) -> Schedule:
    """From one rate to another in a straight line.

    >>> [round(linear(0.0, 0.4, 4)(step), 3) for step in (0, 1, 4, 9)]
    [0.0, 0.1, 0.4, 0.4]
    """
    return Schedule("linear", steps, lambda progress: start + (end - start) * progress)


def early(p: float, steps: int) -> Schedule:
    """Early dropout: from p to 0 in a straight line, then none; helps networks that underfit.

    Reference: Liu et al.: Dropout reduces underfitting (ICML 2023).
    """
    return Schedule("early", steps, lambda progress: p * (1 - progress))


def late(p: float, steps: int) -> Schedule:
    """Late dropout: none, then p.

    Reference: Liu et al.: Dropout reduces underfitting (ICML 2023).
    """
    return Schedule("late", steps, lambda progress: p if progress == 1 else 0.0)


def curriculum(p: float, steps: int, gamma: float = 10.0) -> Schedule:
    """Curriculum dropout: what is kept falls as (1-theta) exp(-gamma t) + theta, theta = 1-p, from 1 towards 1-p.

    Args:
        p: rate in the end, but for a share of exp(-gamma).
        steps: how long t takes from 0 to 1.
        gamma: how fast.

    Reference: Morerio et al.: Curriculum dropout (ICCV 2017).
    """
    return Schedule("curriculum", steps, lambda progress: p * (1 - math.exp(-gamma * progress)))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From one rate to another along half a cosine."""
    return Schedule("cosine", steps, lambda t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2)


def over_depth(
    model: Module, schedule: Schedule, kinds: tuple[type[Keyed], ...] = (DropPath, LayerDrop)
) -> list[float]:
    """Give the layers of some kinds their rates by depth: the first the schedule's start, the last its end.

    Args:
        model: its layers, in the order of `modules()`, are its depth.
        schedule: rate as a function of depth; `linear(0, 0.1)` is the rule of stochastic depth.
        kinds: classes of layers.

    Returns:
        The rates, by depth.

    Raises:
        ValueError: if the model has no such layer.

    >>> over_depth(torch.nn.Sequential(DropPath(), DropPath(), DropPath()), linear(0.0, 0.2))
    [0.0, 0.1, 0.2]
    """
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    if not layers:
        raise ValueError(f"model has no layer of {[kind.__name__ for kind in kinds]}; convert it first, or give kinds")
    rates = [schedule.at(i / max(len(layers) - 1, 1)) for i in range(len(layers))]
    for layer, rate in zip(layers, rates, strict=True):
        layer.p = rate
    return rates


class RateScheduler:
    """Sets the rate of dropout layers step by step, as torch's schedulers set learning rates.

    The layers share one 0-d tensor as their p, which changes in place: compiled code is not compiled again.

    Args:
        layers: a model, all of whose puredrop layers are meant, or some of its layers.
        schedule: a function of the step.

    Raises:
        ValueError: if there is no such layer; torch's own have rates that compiled code takes for constants.

    >>> import puredrop
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), puredrop.nn.Dropout())
    >>> scheduler = RateScheduler(model, linear(0.0, 0.5, steps=2))
    >>> for _ in range(2):
    ...     scheduler.step()
    >>> float(model[1].p)
    0.5
    """

    def __init__(self, layers: Module | Iterable[Keyed], schedule: Schedule) -> None:
        found = layers.modules() if isinstance(layers, Module) else layers
        self.layers = [layer for layer in found if isinstance(layer, Keyed)]
        if not self.layers:
            raise ValueError("layers holds no puredrop layer; convert the model first: puredrop.convert(model)")
        self.schedule = schedule
        self.last_step = 0
        self._rate: Tensor = torch.tensor(schedule(0), dtype=torch.float64, device="cpu")
        for layer in self.layers:
            layer.p = self._rate  # type: ignore[assignment]

    def get_last_rate(self) -> float:
        """The rate in force."""
        return float(self._rate)

    def step(self) -> None:
        """Go on by one step."""
        self.last_step += 1
        self._rate.fill_(self.schedule(self.last_step))

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs; the schedule itself is code and stays with the caller, as torch's lambdas do."""
        return {"last_step": self.last_step, "schedule": self.schedule.name, "steps": self.schedule.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved scheduler stood.

        Raises:
            ValueError: if it had another schedule.
        """
        own = self.state_dict()
        if any(state.get(name) != own[name] for name in ("schedule", "steps")):
            raise ValueError(
                f"state is of {state}; expected that of this schedule, {own['schedule']}, {own['steps']} steps"
            )
        self.last_step = int(state["last_step"])
        self._rate.fill_(self.schedule(self.last_step))
