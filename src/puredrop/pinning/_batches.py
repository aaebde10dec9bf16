"""Which samples of a step each forward is given: by name, or by how many came before on all processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.pinning._ranks import Ranks, ranks_of
from puredrop.pinning._samples import Samples

__all__ = ["Batches", "Tally"]


class Tally(NamedTuple):
    """What a step's forwards have been given so far.

    Args:
        seen: samples on all processes; None once a forward did not say how many it has.
        forwards: how many there were.
        weighted: their samples on this process, each forward's times its number, so that order tells too.
    """

    seen: int | None = 0
    forwards: int = 0
    weighted: int = 0


class Batches:
    """Counts samples, or keeps their names.

    Args:
        is_guessed: whether nobody said in which dimension the samples are, and a module may have them elsewhere.
        mesh, group: of the processes that share a step's samples, as the user said.
        dealt: how they share them, "batches" or "rows".
    """

    def __init__(self, is_guessed: bool, mesh: Any = None, group: Any = None, dealt: str = "batches") -> None:
        self.is_guessed = is_guessed
        self.mesh = mesh
        self.group = group
        self.dealt = dealt
        self.batch_size: int | None = None
        self.ranks: Ranks | None = None  # not looked for before samples are counted
        self.tally = Tally()
        self.ids: Tensor | None = None
        self.is_stale = False  # ids were given for the step before

    def name(self, ids: Tensor | None) -> None:
        """Give the names of the samples of the forwards to come.

        Raises:
            TypeError, ValueError: if they are no int64 tensor of one dimension.
        """
        if ids is not None:
            if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
                what = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
                raise TypeError(f"sample_ids is {what}; expected a torch.int64 tensor, one id per sample")
            if ids.dim() != 1:
                raise ValueError(f"sample_ids has shape {tuple(ids.shape)}; expected one dimension, one id per sample")
        self.ids, self.is_stale = ids, False

    def find_ranks(self, root: Module) -> None:
        """Find the processes that share the samples of a step."""
        if self.ranks is None and self.ids is None:
            self.ranks = ranks_of(self.mesh, self.group, root)

    def begin(self, count: int | None, is_spread: bool) -> Samples:
        """The samples of a forward.

        Args:
            count: how many its inputs hold, None where they do not say.
            is_spread: whether the inputs are DTensors, which hold those of all processes.

        Raises:
            ValueError: if the names do not fit, or are those of another step.
        """
        if self.is_stale:
            raise ValueError(
                "sample_ids were given for the step before and not for this one; set run.sample_ids for each forward "
                "(to None to count samples again)"
            )
        ids, size = self.ids, self.batch_size
        if ids is not None:
            if count is not None and ids.shape[0] != count:
                raise ValueError(
                    f"sample_ids has {ids.shape[0]} entries, the forward {count} samples; expected one id per sample"
                )
            total = count if is_spread else None
            samples = Samples.of(ids.shape[0], 0, ids, base=0, total=total, batch_size=size)
        else:
            base, ranks = self.tally.seen, self.ranks or Ranks()
            own, total = base, count
            if not is_spread and ranks.size > 1 and count is not None and base is not None:
                own, total = base + ranks.rank * count, count * ranks.size
                if self.dealt == "rows":
                    own, ids = 0, torch.arange(base + ranks.rank, base + total, ranks.size)
            elif not is_spread and ranks.size > 1:
                own = None
            samples = Samples.of(count, own, ids, base=base, total=total, batch_size=size)
        if self.is_guessed and not samples.are_whole:
            raise ValueError(
                "a module of the model has batch_first=False, so that samples may be in dimension 1 of its inputs; say "
                "where they are: reproducible(..., sample_dim=1), or 0"
            )
        return samples

    def end(self, samples: Samples) -> None:
        """A forward that dropped is over."""
        seen, forwards, weighted = self.tally
        if self.ids is not None:
            return
        if samples.count is None or samples.total is None or seen is None:
            self.tally = Tally(None, forwards + 1, weighted)
        else:
            self.tally = Tally(seen + samples.total, forwards + 1, weighted + (forwards + 1) * samples.count)

    def check(self) -> None:
        """Before a step ends: that all processes were given as much.

        Raises:
            RuntimeError: if not.
        """
        if self.ranks is not None and self.ids is None and not self.is_stale and self.tally.seen is not None:
            self.ranks.check_equal(self.tally.seen // self.ranks.size, self.tally.weighted)

    def begin_step(self) -> None:
        """None of the next step's samples have been seen."""
        self.is_stale = self.is_stale or self.ids is not None
        self.ids = None
        self.tally = Tally()
