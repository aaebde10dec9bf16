"""A callback that pins a LightningModule."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

from lightning.pytorch import Callback

from puredrop.callbacks._pinning import Pinning

__all__ = ["Reproducible"]


class Reproducible(Callback):
    """Pin a LightningModule while it is fitted.

    The step is the Trainer's, so that a resumed run has the masks of an uninterrupted one. A training_step is one
    forward, however often it calls the module or its parts. Without mesh or dp_group all processes share the samples of
    a step, row by row, as Lightning's sampler does.

    Args:
        seed: seed of all masks, any integer.
        name: text that tells models with one seed apart.
        named: further arguments of `puredrop.reproducible`.

    >>> callback = Reproducible(seed=1)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, seed: int = 0, name: str = "", **named: Any) -> None:
        self._pinning = Pinning(seed, name, named)
        self._open = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Pin the module, at the step where training begins."""
        self._pinning.begin(pl_module, trainer.global_step, trainer.world_size, sharding="rows")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Open the forward, because Lightning calls training_step and not the module."""
        self._open.enter_context(self._pinning.run.forward(batch=batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Close the forward, and follow the Trainer's step."""
        run = self._pinning.run
        self._open.close()
        if trainer.global_step != run.step:
            run.check_batches()
            run.step = trainer.global_step

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close a forward that failed, and unpin the module."""
        with suppress(type(exception)):  # the Trainer raises it again
            self._open.__exit__(type(exception), exception, exception.__traceback__)
        self._pinning.end()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Unpin the module."""
        self._pinning.end()
