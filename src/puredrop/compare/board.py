"""Losses for TensorBoard, one run per arm, so that its curves lie over one another."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from puredrop.compare.training import Arm

__all__ = ["Board"]


class Board:
    """Writes each epoch's mean losses.

    Args:
        folder: where TensorBoard is pointed at; made with the first epoch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, name: str, arm: Arm) -> None:
        """Write the arm's last epoch.

        Args:
            name: the arm's.
            arm: at the end of an epoch.
        """
        if name not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run writes some epochs again: what was written from here on is dropped.
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=arm.epoch)
        for kind, losses in (("training", arm.training_loss), ("validation", arm.validation_loss)):
            self._writers[name].add_scalar(f"loss/{kind}", statistics.fmean(losses[-1]), arm.epoch)

    def close(self) -> None:
        """Write what is still held."""
        for writer in self._writers.values():
            writer.close()
