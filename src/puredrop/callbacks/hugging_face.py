"""Callbacks that pin, and that watch, the model of a Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from puredrop.callbacks._pinning import Pinning
from puredrop.callbacks._watching import Watching
from puredrop.training_watch import Names, WatchReport

__all__ = ["Reproducible", "WatchCallback"]


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


class WatchCallback(TrainerCallback):
    """Watch the model of a Hugging Face Trainer while it trains: dropout on in each step, off in evaluations.

    A training step lasts from the Trainer's `on_step_begin` to its `on_step_end`. Whatever runs between steps without
    gradients is an evaluation: the Trainer's own, and the generations of other callbacks.

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

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Watch the model, from the step where training begins."""
        self._watching.begin(model, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin a training step."""
        self._watching.watch.phase = "training"

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge the step before it changes a weight."""
        self._watching.watch.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the training step."""
        self._watching.end_step(state.global_step)
        self._watching.watch.phase = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove the hooks."""
        self._watching.end()
