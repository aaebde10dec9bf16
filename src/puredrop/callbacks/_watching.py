"""Common part of the callbacks: a model that is watched while another library's loop trains it."""

from __future__ import annotations

from torch.nn import Module

from puredrop.training_watch import Names, TrainingWatch, WatchReport

__all__ = ["Watching"]


class Watching:
    """Arguments of `puredrop.watch`, and the watch while training goes on.

    The loop's callbacks tell of the steps, so that no optimizer needs a hook: those of DeepSpeed have none.

    Args:
        allow, exclude, strict: arguments of `puredrop.watch`.
    """

    def __init__(self, allow: Names, exclude: Names, strict: bool) -> None:
        self._allow = allow
        self._exclude = exclude
        self._strict = strict
        self._watch: TrainingWatch | None = None
        self.is_begun = False

    @property
    def watch(self) -> TrainingWatch:
        """The watch of the present training, or of the last one.

        Raises:
            RuntimeError: if no training has begun.
        """
        if self._watch is None:
            raise RuntimeError("no training has begun, so nothing was watched; give the callback to the Trainer")
        return self._watch

    @property
    def report(self) -> WatchReport:
        """The report of the watch."""
        return self.watch.report

    def begin(self, model: Module, step: int) -> None:
        """Watch a model.

        Args:
            model: the model that the loop trains.
            step: step at which training begins.
        """
        self.end()  # for a training that was broken off
        self._watch = TrainingWatch(model, (), allow=self._allow, exclude=self._exclude, strict=self._strict)
        self._watch.step = step
        self.is_begun = True

    def end_step(self, step: int) -> None:
        """Follow the loop's step."""
        self.watch.after_step()
        self.watch.step = step

    def end(self) -> None:
        """Remove the hooks; the report stays."""
        if self.is_begun:
            self.is_begun = False
            self.watch.phase = None
            self.watch.stop()
