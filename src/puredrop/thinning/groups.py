"""How a batch is split into groups of samples that share their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["MOST", "ROWS", "Groups", "GroupSplit"]

ROWS = 128
"""Rows of a group at least, where the number of groups is chosen: with half as many, a step of 784-2048x3-10 takes
1.6 times as long as with one group (docs/batchwise.md)."""
MOST = 16
"""Groups at most, where their number is chosen: with so many no cost was found on MNIST (docs/batchwise.md)."""


@dataclass(frozen=True)
class GroupSplit:
    """A batch in groups of nearly equal size: their numbers of samples differ by one at most.

    Args:
        samples: in the batch.
        groups: how many.
    """

    samples: int
    groups: int

    @property
    def size(self) -> int:
        """Samples of the largest group; the others are filled up to it."""
        return -(-self.samples // self.groups)

    @property
    def starts(self) -> list[int]:
        """Each group's first sample."""
        return [self.samples * group // self.groups for group in range(self.groups)]

    @property
    def group_of(self) -> list[int]:
        """Each sample's group."""
        ends = [*self.starts[1:], self.samples]
        return [group for group in range(self.groups) for _ in range(self.starts[group], ends[group])]

    @property
    def _is_even(self) -> bool:
        return self.samples % self.groups == 0

    def _places(self) -> tuple[list[int], list[int]]:
        """Which sample stands where in groups that are filled up by the next ones, and where each sample stands."""
        starts = self.starts
        ends = [*starts[1:], self.samples]
        taken = [min(start + i, self.samples - 1) for start in starts for i in range(self.size)]
        at = [g * self.size + i for g in range(self.groups) for i in range(ends[g] - starts[g])]
        return taken, at

    def spread(self, dense: Tensor) -> Tensor:
        """(samples, ...) -> (groups, size, ...); what fills a group up is computed and forgotten."""
        if not self._is_even:
            dense = dense.index_select(0, torch.tensor(self._places()[0], device=dense.device))
        return dense.reshape(self.groups, self.size, *dense.shape[1:])

    def joined(self, parts: Tensor) -> Tensor:
        """(groups, size, ...) -> (samples, ...)."""
        dense = parts.reshape(self.groups * self.size, *parts.shape[2:])
        if not self._is_even:
            dense = dense.index_select(0, torch.tensor(self._places()[1], device=dense.device))
        return dense


@dataclass(frozen=True)
class Groups:
    """The rule by which a batch is split.

    Args:
        number: of groups, or "auto".

    Raises:
        TypeError, ValueError: if it is neither "auto" nor a positive integer.
    """

    number: int | Literal["auto"]

    def __post_init__(self) -> None:
        if self.number == "auto":
            return
        if not isinstance(self.number, int) or isinstance(self.number, bool):
            raise TypeError(f"groups is {self.number!r}; expected a positive integer or 'auto'")
        if self.number < 1:
            raise ValueError(f"groups is {self.number}; expected 1 (one mask for the whole batch) or more, or 'auto'")

    def of(self, samples: int, rows: int) -> GroupSplit:
        """The groups of a batch.

        Args:
            samples: in the batch.
            rows: of all samples together, a token or a position being one.

        Raises:
            ValueError: if there are more groups than samples.
        """
        if self.number == "auto":
            return GroupSplit(samples, max(1, min(MOST, rows // ROWS, samples)))
        if self.number > samples:
            raise ValueError(
                f"groups is {self.number}, the batch has {samples} samples; expected no more groups than samples "
                "(drop the last, smaller batch, or pass groups='auto')"
            )
        return GroupSplit(samples, self.number)

    def __str__(self) -> str:
        if self.number == "auto":
            return f"auto: one for every {ROWS} rows of a batch, at most {MOST}"
        return f"{self.number} in a batch"
