"""What the callbacks have in common: a model pinned while somebody else's loop trains it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.nn import Module

from puredrop.pinning import Run, reproducible

__all__ = ["Pinning"]


class Pinning:
    """Arguments of `reproducible`, and the run once training has begun.

    Args:
        seed, name, named: as in `puredrop.reproducible`.
    """

    run: Run

    def __init__(self, seed: int, name: str, named: dict[str, Any]) -> None:
        self._arguments = (seed, name)
        self._named = named
        self._is_begun = False

    def begin(self, model: Module, step: int, processes: int, dealt: str) -> None:
        """Pin a model.

        Args:
            model: the loop's.
            step: where training begins.
            processes: that train it; they share the samples, unless the user said which do.
            dealt: how the loop deals rows to them.
        """
        self.end()  # a training that was broken off
        named = self._named
        if processes > 1 and not {"mesh", "dp_group"} & set(named):
            named = {"dp_group": dist.group.WORLD, "dealt": dealt, **named}
        self.run = reproducible(model, *self._arguments, **named)
        self.run.step = step
        self._is_begun = True

    def end(self) -> None:
        """Let it go."""
        if self._is_begun:
            self.run.release()
        self._is_begun = False
