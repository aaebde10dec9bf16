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


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclass(frozen=True, repr=False)
class Schedule:
    """A drop probability as a function of training progress or of depth.

    Use the functions of this module to make one; make your own for any other curve.

    Args:
        name: name of the curve, for printing and for checking resumed runs.
        steps: number of steps after which the rate no longer changes, at least 1.
        at: function from progress in [0, 1] to a rate in [0, 1].

    Raises:
        ValueError: if steps is below 1, or the rate at progress 0, 0.5 or 1 is outside [0, 1].

    >>> Schedule("quadratic", 10, lambda progress: 0.5 * progress**2)(10)
    0.5
    """

    name: str
    steps: int
    at: Callable[[float], float]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected 1 or more (for one rate throughout use constant)")
        for progress in (0.0, 0.5, 1.0):
            ops.as_rate(self.at(progress))

    def __repr__(self) -> str:
        start, middle, end = (f"{self.at(progress):g}" for progress in (0.0, 0.5, 1.0))
        rates = start if start == middle == end else f"{start} to {end} over {self.steps} steps"
        return f"Schedule({self.name}, p={rates})"

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        return self.at(min(step / self.steps, 1.0))


def constant(p: float) -> Schedule:
    """Keep one rate throughout.

    Use it where a schedule is expected and the rate should not change.

    Args:
        p: drop probability in [0, 1].

    Returns:
        The schedule.

    Raises:
        ValueError: if p is outside [0, 1].

    >>> constant(0.5), constant(0.5)(1000)
    (Schedule(constant, p=0.5), 0.5)
    """
    return Schedule("constant", 1, lambda progress: p)


def linear(start: float, end: float, steps: int = 1) -> Schedule:
    """Change the rate from one value to another in a straight line.

    Use it to warm dropout up or down, and with `over_depth` for the rule of stochastic depth.

    Args:
        start: drop probability at step 0.
        end: drop probability from step `steps` on.
        steps: number of steps, at least 1.

    Returns:
        The schedule.

    >>> [round(linear(0.0, 0.4, 4)(step), 3) for step in (0, 1, 4, 9)]
    [0.0, 0.1, 0.4, 0.4]
    """
    return Schedule("linear", steps, lambda progress: start + (end - start) * progress)


def early(p: float, steps: int) -> Schedule:
    """Drop early in training only: the rate falls from p to 0 in a straight line.

    Use it for networks that underfit: their training loss ends lower than without dropout.

    Args:
        p: drop probability at step 0.
        steps: number of steps after which nothing is dropped.

    Returns:
        The schedule.

    Reference: Liu et al.: Dropout reduces underfitting (ICML 2023).

    >>> [early(0.2, 2)(step) for step in (0, 1, 2)]
    [0.2, 0.1, 0.0]
    """
    return Schedule("early", steps, lambda progress: p * (1 - progress))


def late(p: float, steps: int) -> Schedule:
    """Drop late in training only: the rate is 0 and jumps to p.

    Use it for networks that overfit once they have learned the task.

    Args:
        p: drop probability from step `steps` on.
        steps: number of steps before which nothing is dropped.

    Returns:
        The schedule.

    Reference: Liu et al.: Dropout reduces underfitting (ICML 2023).

    >>> [late(0.2, 2)(step) for step in (0, 1, 2)]
    [0.0, 0.0, 0.2]
    """
    return Schedule("late", steps, lambda progress: p if progress == 1 else 0.0)


def curriculum(p: float, steps: int, gamma: float = 10.0) -> Schedule:
    """Raise the rate from 0 towards p along an exponential, as curriculum dropout does.

    The share of kept units at progress t is (1 - theta) exp(-gamma t) + theta with theta = 1 - p. Use it to let a
    network learn easy features first.

    Args:
        p: drop probability in the limit; after `steps` the rate is p (1 - exp(-gamma)).
        steps: number of steps in which t goes from 0 to 1.
        gamma: steepness of the exponential, positive.

    Returns:
        The schedule.

    Raises:
        ValueError: if a rate is outside [0, 1], or steps is below 1.

    Reference: Morerio et al.: Curriculum dropout (ICCV 2017).

    >>> [round(curriculum(0.5, 10)(step), 3) for step in (0, 1, 10)]
    [0.0, 0.316, 0.5]
    """
    return Schedule("curriculum", steps, lambda progress: p * (1 - math.exp(-gamma * progress)))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Change the rate from one value to another along half a cosine.

    Use it where the rate should change slowly at both ends.

    Args:
        start: drop probability at step 0.
        end: drop probability from step `steps` on.
        steps: number of steps, at least 1.

    Returns:
        The schedule.

    >>> [round(cosine(0.0, 0.4, 4)(step), 3) for step in (0, 1, 2, 4)]
    [0.0, 0.059, 0.2, 0.4]
    """
    return Schedule("cosine", steps, lambda t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2)


def over_depth(
    model: Module, schedule: Schedule, kinds: tuple[type[Keyed], ...] = (DropPath, LayerDrop)
) -> list[float]:
    """Set the rates of a model's layers by their depth.

    The first layer gets the schedule's start, the last its end. Use it for stochastic depth, whose rate rises with
    depth.

    Args:
        model: any module; the order of its `modules()` is the depth.
        schedule: rate as a function of depth; `linear(0, 0.1)` is the rule of stochastic depth.
        kinds: classes of the layers whose rates are set.

    Returns:
        The rates, by depth.

    Raises:
        ValueError: if the model has no layer of these classes.

    Reference: Huang et al.: Deep networks with stochastic depth (ECCV 2016).

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
    """Set the rate of dropout layers step by step, as torch's schedulers set learning rates.

    The layers share one 0-d tensor as their p, which changes in place, so that compiled code is not compiled again.

    Args:
        layers: a model, for all its puredrop layers, or an iterable of layers.
        schedule: rate as a function of the step.

    Raises:
        ValueError: if there is no puredrop layer; the rates of torch's own layers are constants of compiled code.

    >>> import puredrop
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), puredrop.nn.Dropout())
    >>> scheduler = RateScheduler(model, linear(0.0, 0.5, steps=2))
    >>> for _ in range(2):
    ...     scheduler.step()
    >>> float(model[1].p)
    0.5
    """

    def __init__(self, layers: Module | Iterable[Keyed], schedule: Schedule) -> None:
        candidates = layers.modules() if isinstance(layers, Module) else layers
        self.layers = [layer for layer in candidates if isinstance(layer, Keyed)]
        if not self.layers:
            raise ValueError("layers holds no puredrop layer; convert the model first: puredrop.convert(model)")
        self.schedule = schedule
        self.last_step = 0
        self._rate: Tensor = torch.tensor(schedule(0), dtype=torch.float64, device="cpu")
        for layer in self.layers:
            layer.p = self._rate  # type: ignore[assignment]

    def __repr__(self) -> str:
        rate = f"p={self.get_last_rate():g}"
        return f"RateScheduler({self.schedule.name}, step {self.last_step} of {self.schedule.steps}, {rate})"

    def get_last_rate(self) -> float:
        """Return the rate of the present step."""
        return float(self._rate)

    def step(self) -> None:
        """Advance by one step and set the rate of all layers."""
        self.last_step += 1
        self._rate.fill_(self.schedule(self.last_step))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming; the schedule itself is code and is not part of it."""
        return {"last_step": self.last_step, "schedule": self.schedule.name, "steps": self.schedule.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the step at which a state was saved.

        Args:
            state: a dictionary from `state_dict`.

        Raises:
            ValueError: if the state is that of another schedule.
        """
        if state.get("schedule") != self.schedule.name or state.get("steps") != self.schedule.steps:
            raise ValueError(
                f"state is of {state}; expected that of this schedule, {self.schedule.name}, {self.schedule.steps} "
                "steps"
            )
        self.last_step = int(state["last_step"])
        self._rate.fill_(self.schedule(self.last_step))
