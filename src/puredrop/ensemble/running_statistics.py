"""Sums over members' outputs as they arrive; their memory does not grow with the number of members."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from puredrop.members.masks import BLOCK

__all__ = ["RunningStatistics"]

_GROUPS = 8
"""Groups of replicates from which the jackknife leaves one out at a time."""


@dataclass
class RunningStatistics:
    """Sums over members of one batch's outputs, in float64 and about the first block's mean.

    Args:
        class_dim: dimension of the classes in a member's output, where outputs are probabilities; None for others.
        balanced: whether only blocks of members are independent of each other, and not members.
        kept: number of members whose outputs are kept.
    """

    class_dim: int | None
    balanced: bool
    kept: int
    count: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    _shift: Tensor = field(init=False)
    _sums: Tensor = field(init=False)
    _squares: Tensor = field(init=False)
    _blocks: Tensor = field(init=False)
    _weighted: Tensor = field(init=False)
    _groups: Tensor = field(init=False)
    _entropies: Tensor = field(init=False)
    _noises: Tensor = field(init=False)
    _sizes: list[int] = field(init=False)
    _weights: int = 0
    _replicates: int = 0

    def add(self, outputs: Tensor) -> None:
        """Add the next members' outputs, (members, rows, ...): at most a block, all of the same block."""
        members = len(outputs)
        if self.count < self.kept:
            self.outputs.append(outputs[: self.kept - self.count].float().cpu())
        if self.count == 0:
            self._begin(outputs)
        if self.class_dim is not None:
            total = torch.special.entr(outputs).sum((0, self._dim(1)), dtype=torch.float64)
            self._entropies = self._entropies + total
        away = outputs.double() - self._shift
        self._squares += away.square().sum(0)
        total = away.sum(0)
        self._sums += total
        self._blocks += total.square()
        self._weighted += members * total
        self._weights += members * members
        self._replicates += 1
        if self.balanced:
            group = self.count // BLOCK % _GROUPS
            self._groups[group] += total
            self._sizes[group] += members
        else:
            for group in range(_GROUPS):
                part = away[(group - self.count) % _GROUPS :: _GROUPS]
                self._groups[group] += part.sum(0)
                self._sizes[group] += len(part)
        self.count += members

    @property
    def kept_bytes(self) -> int:
        """The bytes of the outputs that are kept."""
        return sum(part.nbytes for part in self.outputs)

    def forget_outputs(self) -> None:
        """Keep no member's outputs from now on."""
        self.kept = 0
        self.outputs.clear()

    def add_noise(self, variances: Tensor) -> None:
        """Add the same members' variances of the noise, (members, rows, ...); call it before `add`."""
        total = variances.double().sum(0)
        self._noises = total if self.count == 0 else self._noises + total

    @property
    def noise(self) -> Tensor:
        """The mean variance of the noise."""
        return self._noises / self.count

    def select(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        for name in ("_shift", "_sums", "_squares", "_blocks", "_weighted", "_noises"):
            if hasattr(self, name):
                setattr(self, name, getattr(self, name)[rows.to(self._shift.device)])
        if self._entropies.dim():
            self._entropies = self._entropies[rows.to(self._shift.device)]
        self._groups = self._groups[:, rows.to(self._groups.device)]
        self.outputs = [part[:, rows] for part in self.outputs]

    def _begin(self, outputs: Tensor) -> None:
        self._shift = outputs.double().mean(0)
        self._sums, self._squares, self._blocks, self._weighted = (torch.zeros_like(self._shift) for _ in range(4))
        self._groups = torch.zeros(_GROUPS, *self._shift.shape, dtype=torch.float64, device=self._shift.device)
        self._sizes = [0] * _GROUPS
        self._entropies = torch.zeros((), dtype=torch.float64, device=self._shift.device)

    def _dim(self, members: int) -> int:
        """Return the dimension of the classes after so many dimensions of members."""
        assert self.class_dim is not None
        return self.class_dim + members if self.class_dim >= 0 else self.class_dim

    @property
    def mean(self) -> Tensor:
        """The mean over all members."""
        return self._shift + self._sums / self.count

    @property
    def variance(self) -> Tensor:
        """The variance between members, unbiased where they are independent; NaN for a single one."""
        if self.count < 2:
            return torch.full_like(self._shift, torch.nan)
        return ((self._squares - self._sums.square() / self.count) / (self.count - 1)).clamp_min(0)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the mean from independent replicates: members, or blocks of balanced ones.

        NaN for a single replicate.
        """
        if not self.balanced:
            return (self.variance / self.count).sqrt()
        if self._replicates < 2:
            return torch.full_like(self._shift, torch.nan)
        mean = self._sums / self.count
        spread = self._blocks - 2 * mean * self._weighted + mean.square() * self._weights
        return (spread.clamp_min(0) * (self._replicates / (self._replicates - 1))).sqrt() / self.count

    @property
    def expected_entropy(self) -> Tensor:
        """The mean of the members' entropies in nats."""
        return self._entropies / self.count

    @property
    def entropy(self) -> Tensor:
        """The entropy of the mean in nats; leaving out a group at a time removes its bias of order 1/members.

        Reference: Quenouille: Notes on bias in estimation (Biometrika 1956).
        """
        whole = self._entropy(self.mean)
        sizes = [size for size in self._sizes if size]
        if len(sizes) < 2:
            return whole
        less, inverse = torch.zeros_like(whole), 0.0
        for total, size in zip(self._groups, self._sizes, strict=True):
            if size:
                others = self.count - size
                less += self._entropy(self._shift + (self._sums - total) / others) - whole
                inverse += 1 / others - 1 / self.count
        return whole - less / inverse / self.count

    def _entropy(self, mean: Tensor) -> Tensor:
        entropy: Tensor = torch.special.entr(mean.clamp_min(0)).sum(self._dim(0))
        return entropy
