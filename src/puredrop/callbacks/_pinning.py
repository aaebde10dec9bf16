"""Common part of the callbacks: a model that is pinned while another library's loop trains it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.nn import Module

from puredrop.pinning import Run, reproducible

__all__ = ["Pinning"]


class Pinning:
    """Arguments of `reproducible`, and the run while training goes on.

    Args:
        seed, name: arguments of `puredrop.reproducible`.
        named: its other arguments.
    """

    run: Run

    def __init__(self, seed: int, name: str, named: dict[str, Any]) -> None:
        self._arguments = (seed, name)
        self._named = named
        self._is_begun = False

    def begin(self, model: Module, step: int, processes: int, sharding: str) -> None:
        """Pin a model.

        Args:
            model: the model that the loop trains.
            step: step at which training begins.
            processes: number of processes that train it; they share the samples unless the user says otherwise.
            sharding: "batches" or "rows", as the loop gives samples to the processes.
        """
        self.end()  # for a training that was broken off
        named = self._named
        if processes > 1 and not {"mesh", "dp_group"} & set(named):
            named = {"dp_group": dist.group.WORLD, "sharding": sharding, **named}
        self.run = reproducible(model, *self._arguments, **named)
        self.run.step = step
        self._is_begun = True

    def end(self) -> None:
        """Unpin the model."""
        if self._is_begun:
            self.run.release()
        self._is_begun = False
