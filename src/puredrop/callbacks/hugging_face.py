"""A callback that pins the model of a Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from puredrop.callbacks._pinning import Pinning

__all__ = ["Reproducible"]


class Reproducible(TrainerCallback):
    """Pin the model of a Hugging Face Trainer while it trains.

    The step is the Trainer's, so that a resumed run has the masks of an uninterrupted one. Without mesh or dp_group all
    processes share the samples of a step, batch by batch in the order of ranks, as the Trainer's data loaders do.

    Args:
        seed: seed of all masks, any integer.
        name: text that tells models with one seed apart.
        named: further arguments of `puredrop.reproducible`.

    >>> callback = Reproducible(seed=1)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, seed: int = 0, name: str = "", **named: Any) -> None:
        self._pinning = Pinning(seed, name, named)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Pin the model, at the step where training begins."""
        self._pinning.begin(model, state.global_step, args.world_size, sharding="batches")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse unequal batches before they change a weight."""
        self._pinning.run.check_batches()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow the Trainer's step."""
        self._pinning.run.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Unpin the model."""
        self._pinning.end()
