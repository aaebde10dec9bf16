"""A log of losses for TensorBoard: one run for each arm, so that the curves lie over one another."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from puredrop.compare.training import Arm

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """A log of each epoch's mean losses.

    Args:
        folder: the folder that TensorBoard reads; made with the first epoch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, name: str, arm: Arm) -> None:
        """Write the losses of an arm's last epoch."""
        if name not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run writes some epochs again; purge_step drops what an earlier process wrote from here on.
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=arm.epoch)
        for kind, losses in (("training", arm.training_loss), ("validation", arm.validation_loss)):
            self._writers[name].add_scalar(f"loss/{kind}", statistics.fmean(losses[-1]), arm.epoch)

    def close(self) -> None:
        """Write what is buffered and close the files."""
        for writer in self._writers.values():
            writer.close()
