"""Callbacks that pin, and that watch, a LightningModule."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

from lightning.pytorch import Callback

from puredrop.callbacks._pinning import Pinning
from puredrop.callbacks._watching import Watching
from puredrop.training_watch import Names, WatchReport

__all__ = ["Reproducible", "WatchCallback"]


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


class WatchCallback(Callback):
    """Watch a LightningModule: dropout on in each training step, off in validation, test and prediction.

    Lightning calls training_step and not the module, so flags are read before backward and after each batch of an
    evaluation, too.

    Args:
        allow: paths or classes of modules that drop in evaluations on purpose.
        exclude: paths or classes of modules that are not watched.
        strict: whether a mistake raises RuntimeError instead of a `puredrop.WatchWarning`.

    >>> callback = WatchCallback(strict=True)  # Trainer(..., callbacks=[callback]); then callback.report
    """

    def __init__(self, *, allow: Names = (), exclude: Names = (), strict: bool = False) -> None:
        self._watching = Watching(allow, exclude, strict)

    @property
    def report(self) -> WatchReport:
        """The mistakes so far, and how much was watched."""
        return self._watching.report

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the module, from the step where training begins."""
        self._watching.begin(pl_module, trainer.global_step)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the step of a resumed training."""
        self._watching.watch.step = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin the forwards of a batch."""
        self._watching.watch.phase = "training"

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Read the flags, after all that changes them before a training_step or in one."""
        self._watching.watch.note_forward()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Judge the step before it changes a weight."""
        self._watching.watch.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the batch, and the step if the optimizer took one."""
        watch = self._watching.watch
        if trainer.global_step != watch.step:
            self._watching.end_step(trainer.global_step)
        watch.phase = None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an evaluation."""
        if not self._watching.is_begun:  # trainer.validate, test or predict alone
            self._watching.begin(pl_module, trainer.global_step)
        self._watching.watch.phase = "evaluation"

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Read the flags of a batch of an evaluation."""
        self._watching.watch.note_forward()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """End an evaluation."""
        self._watching.watch.phase = None

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks from a module that failed."""
        with suppress(RuntimeError):  # the Trainer raises the first error again
            self._watching.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove the hooks."""
        self._watching.end()
