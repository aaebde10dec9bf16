"""A callback that pins a LightningModule."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

from lightning.pytorch import Callback

from puredrop.callbacks._pinning import Pinning

__all__ = ["Reproducible"]


class Reproducible(Callback):
    """Pins a LightningModule while it is fitted; the step is the Trainer's, so that a resumed run goes on as it would.

    A training_step is one forward, however often it calls the module or its parts.

    Args:
        seed, name, named: as in `puredrop.reproducible`. Without mesh or dp_group all processes share the samples of a
            step, row by row, as Lightning's sampler deals them.

    >>> callback = Reproducible(seed=1)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, seed: int = 0, name: str = "", **named: Any) -> None:
        self._pinning = Pinning(seed, name, named)
        self._open = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Pin the module, at the step where training begins."""
        self._pinning.begin(pl_module, trainer.global_step, trainer.world_size, dealt="rows")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Open the forward, which a training_step called by itself would not."""
        self._open.enter_context(self._pinning.run.forward(batch=batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Close the forward, and follow the Trainer's step."""
        run = self._pinning.run
        self._open.close()
        if trainer.global_step != run.step:
            run.check_batches()
            run.step = trainer.global_step

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close a forward that failed, and let go."""
        with suppress(type(exception)):  # which goes on in the Trainer
            self._open.__exit__(type(exception), exception, exception.__traceback__)
        self._pinning.end()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the module go."""
        self._pinning.end()
