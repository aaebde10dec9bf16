"""Split of a batch into groups of samples that share their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["MAX_GROUPS", "MIN_ROWS", "GroupSplit", "Groups"]

MIN_ROWS = 128
"""Least rows of a group under groups="auto": with half as many, a step of 784-2048x3-10 takes 1.6 times as long as with
one group (docs/batchwise.md)."""
MAX_GROUPS = 16
"""Most groups under groups="auto": with so many no loss of accuracy was found on MNIST (docs/batchwise.md)."""


@dataclass(frozen=True)
class GroupSplit:
    """Split of a batch into groups whose numbers of samples differ by at most one.

    Args:
        samples: samples in the batch.
        groups: number of groups.
    """

    samples: int
    groups: int

    @property
    def size(self) -> int:
        """Samples of the largest group, to which the others are padded."""
        return -(-self.samples // self.groups)

    @property
    def starts(self) -> list[int]:
        """Each group's first sample."""
        return [self.samples * group // self.groups for group in range(self.groups)]

    @property
    def group_of(self) -> list[int]:
        """Return the group number of each sample."""
        ends = [*self.starts[1:], self.samples]
        return [group for group in range(self.groups) for _ in range(self.starts[group], ends[group])]

    @property
    def _is_even(self) -> bool:
        return self.samples % self.groups == 0

    def _places(self) -> tuple[list[int], list[int]]:
        """Return the sample at each place of the padded groups, and the place of each sample."""
        starts = self.starts
        ends = [*starts[1:], self.samples]
        samples = [min(start + i, self.samples - 1) for start in starts for i in range(self.size)]
        places = [g * self.size + i for g in range(self.groups) for i in range(ends[g] - starts[g])]
        return samples, places

    def spread(self, dense: Tensor) -> Tensor:
        """Split (samples, ...) into (groups, size, ...); groups are padded with samples of the next one."""
        if not self._is_even:
            dense = dense.index_select(0, torch.tensor(self._places()[0], device=dense.device))
        return dense.reshape(self.groups, self.size, *dense.shape[1:])

    def joined(self, parts: Tensor) -> Tensor:
        """Join (groups, size, ...) to (samples, ...), without the padding."""
        dense = parts.reshape(self.groups * self.size, *parts.shape[2:])
        if not self._is_even:
            dense = dense.index_select(0, torch.tensor(self._places()[1], device=dense.device))
        return dense


@dataclass(frozen=True)
class Groups:
    """Rule by which batches are split.

    Args:
        number: number of groups, or "auto".

    Raises:
        TypeError, ValueError: if the number is neither "auto" nor a positive integer.
    """

    number: int | Literal["auto"]

    def __post_init__(self) -> None:
        if self.number == "auto":
            return
        if not isinstance(self.number, int) or isinstance(self.number, bool):
            raise TypeError(f"groups is {self.number!r}; expected a positive integer or 'auto'")
        if self.number < 1:
            raise ValueError(f"groups is {self.number}; expected 1 (one mask for the whole batch) or more, or 'auto'")

    def split(self, samples: int, rows: int) -> GroupSplit:
        """Split a batch; one with fewer samples than groups has one sample in each group.

        Args:
            samples: samples in the batch.
            rows: rows of all samples together; a token or a position is a row.
        """
        number = min(MAX_GROUPS, rows // MIN_ROWS) if self.number == "auto" else self.number
        return GroupSplit(samples, max(1, min(number, samples)))

    def __str__(self) -> str:
        if self.number == "auto":
            return f"auto: one for every {MIN_ROWS} rows of a batch, at most {MAX_GROUPS}"
        return f"{self.number} in a batch"
