"""Hooks on optimizers: the steps of a training."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ["StepHooks", "optimizers_in"]


class Stepped(Protocol):
    """Object that is told of each optimizer step."""

    def before_step(self) -> None:
        """Judge the forwards since the last step."""

    def after_step(self, counts: bool = True) -> None:
        """Begin the next step."""


def optimizers_in(value: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    """Return the optimizers of an argument, without wrappers such as accelerate's.

    Raises:
        TypeError: if there is something else.
    """
    given = [] if value is None else [value] if isinstance(value, Optimizer) else value
    if not isinstance(given, Iterable):
        given = [given]
    optimizers = []
    for optimizer in given:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is {type(optimizer).__name__}; expected a torch.optim.Optimizer, or several")
        inner: Any = optimizer
        while isinstance(getattr(inner, "optimizer", None), Optimizer):
            inner = inner.optimizer
        optimizers.append(inner)
    return optimizers


class StepHooks:
    """Hooks on optimizers that tell of their steps, before and after; the first optimizer counts.

    Args:
        stepped: the object that is told; the hooks do not keep it alive.
    """

    def __init__(self, stepped: Stepped) -> None:
        self._stepped = weakref.ref(stepped)
        self._counting: weakref.ref[Optimizer] | None = None
        self._handles: list[Any] = []
        self._trains: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self._model: weakref.ref[Module] | None = None
        # Traced, a count of steps would be a constant of the program, which would be compiled anew for each step.
        self._hooks = (torch.compiler.disable(self._before), torch.compiler.disable(self._after))

    def attach(self, optimizer: Optimizer) -> None:
        """Put the hooks on an optimizer."""
        self._trains[optimizer] = True
        if self._counting is None:
            self._counting = weakref.ref(optimizer)
        self._handles += [
            optimizer.register_step_pre_hook(self._hooks[0]),
            optimizer.register_step_post_hook(self._hooks[1]),
        ]

    def find(self, model: Module) -> None:
        """Put the hooks on all optimizers, which count if they hold a parameter of a model."""
        self._model = weakref.ref(model)
        self._handles += [
            register_optimizer_step_pre_hook(self._hooks[0]),
            register_optimizer_step_post_hook(self._hooks[1]),
        ]
        weakref.finalize(model, self.remove)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        stepped = self._stepped()
        if stepped is not None and self._is_ours(optimizer):
            stepped.before_step()

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        stepped = self._stepped()
        if stepped is not None and self._is_ours(optimizer):
            if self._counting is None or self._counting() is None:
                self._counting = weakref.ref(optimizer)
            stepped.after_step(self._counting() is optimizer)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer trains the model; found once for each optimizer."""
        if optimizer not in self._trains:
            model = None if self._model is None else self._model()
            weights = set() if model is None else set(map(id, model.parameters()))
            groups = optimizer.param_groups
            self._trains[optimizer] = any(id(weight) in weights for group in groups for weight in group["params"])
        return self._trains[optimizer]
