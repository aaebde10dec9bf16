"""A callback that pins a LightningModule."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback

from puredrop.reproducible import Run, reproducible

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
        self.seed = seed
        self.name = name
        self.named = named
        self.run: Run | None = None
        self._open = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Pin the module, at the step where training begins."""
        named = dict(self.named)
        if trainer.world_size > 1 and not {"mesh", "dp_group"} & set(named):
            named = {"dp_group": dist.group.WORLD, "dealt": "rows", **named}
        self.run = reproducible(pl_module, self.seed, self.name, **named)
        self.run.step = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Open the forward, which a training_step called by itself would not."""
        assert self.run is not None
        self._open.enter_context(self.run.forward(batch=batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Close the forward, and follow the Trainer's step."""
        assert self.run is not None
        self._open.close()
        if trainer.global_step != self.run.step:
            self.run.check_batches()
            self.run.step = trainer.global_step

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close a forward that failed, and let go."""
        self._open.__exit__(type(exception), exception, None)
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the module go."""
        if self.run is not None:
            self.run.release()
            self.run = None
