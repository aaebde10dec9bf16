"""A callback that pins the model of a Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from puredrop.reproducible import Run, reproducible

__all__ = ["Reproducible"]


class Reproducible(TrainerCallback):
    """Pins the Trainer's model while it trains; the step is the Trainer's, so that a resumed run goes on as it would.

    Args:
        seed, name, named: as in `puredrop.reproducible`. Without mesh or dp_group all processes share the samples of a
            step, as the Trainer's data loaders deal them out: batch by batch in the order of ranks.

    >>> callback = Reproducible(seed=1)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, seed: int = 0, name: str = "", **named: Any) -> None:
        self.seed = seed
        self.name = name
        self.named = named
        self.run: Run | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Pin the model, at the step where training begins."""
        named = dict(self.named)
        if args.world_size > 1 and not {"mesh", "dp_group"} & set(named):
            named["dp_group"] = dist.group.WORLD
        self.run = reproducible(model, self.seed, self.name, **named)
        self.run.step = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse unequal batches before they change a weight."""
        assert self.run is not None
        self.run.check_batches()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow the Trainer's step."""
        assert self.run is not None
        self.run.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the model go."""
        assert self.run is not None
        self.run.release()
