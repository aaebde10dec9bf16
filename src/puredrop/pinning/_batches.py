"""Samples of a step that each forward gets: given by ids, or counted over forwards and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._torch_transforms import mapped_over
from puredrop.pinning._mapping import Slices
from puredrop.pinning._ranks import Ranks, ranks_of
from puredrop.pinning._samples import Samples

__all__ = ["Batches", "Tally"]


class Tally(NamedTuple):
    """Count of the samples that the forwards of a step got so far.

    Args:
        samples: samples on all processes; None once a forward did not say how many it had.
        forwards: number of forwards.
        weighted: sum of the forwards' samples on this process, each times the forward's number, so that two orders of
            unequal batches have different sums.
    """

    samples: int | None = 0
    forwards: int = 0
    weighted: int = 0


class Batches:
    """Counter of a step's samples, or holder of their ids.

    Args:
        is_guessed: whether the sample dimension was not given and a module may have samples in another one.
        mesh, group: processes that share a step's samples, as the user gave them.
        sharding: "batches" or "rows", as `reproducible` takes it.
    """

    def __init__(self, is_guessed: bool, mesh: Any = None, group: Any = None, sharding: str = "batches") -> None:
        self.is_guessed = is_guessed
        self.mesh = mesh
        self.group = group
        self.sharding = sharding
        self.batch_size: int | None = None
        self.ranks: Ranks | None = None  # unknown until samples are counted
        self.tally = Tally()
        self.ids: Tensor | None = None
        self.is_stale = False  # True if the ids belong to the step before

    def set_ids(self, ids: Tensor | None) -> None:
        """Set the ids of the samples of the next forwards.

        Raises:
            TypeError, ValueError: if ids is not an int64 tensor of one dimension.
        """
        if ids is not None:
            if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
                kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
                raise TypeError(f"sample_ids is {kind}; expected a torch.int64 tensor, one id per sample")
            if ids.dim() != 1:
                raise ValueError(f"sample_ids has shape {tuple(ids.shape)}; expected one dimension, one id per sample")
        self.ids, self.is_stale = ids, False

    def find_ranks(self, root: Module) -> None:
        """Find the processes that share the samples of a step."""
        if self.ranks is None and self.ids is None:
            self.ranks = ranks_of(self.mesh, self.group, root)

    def begin(self, count: int | None, is_spread: bool, slices: Slices | None = None) -> Samples:
        """Return the samples of a forward that begins.

        Args:
            count: number of samples in its inputs, None if they do not say.
            is_spread: whether the inputs are DTensors, which hold the samples of all processes.
            slices: levels of vmap around the forward, None outside of torch.func.

        Raises:
            ValueError: if the ids do not fit the inputs, or belong to another step.
        """
        if self.is_stale:
            raise ValueError(
                "sample_ids were given for the step before and not for this one; set run.sample_ids before "
                "each forward (to None to count samples again)"
            )
        ids, size = self.ids, self.batch_size
        if slices is not None and slices.sizes:
            samples = self._mapped(count, slices)
        elif ids is not None:
            if count is not None and ids.shape[0] != count:
                raise ValueError(
                    f"sample_ids has {ids.shape[0]} entries, the forward {count} samples; expected one id per sample"
                )
            total = count if is_spread else None
            samples = Samples.of(ids.shape[0], 0, ids, base=0, total=total, batch_size=size)
        else:
            base, ranks = self.tally.samples, self.ranks or Ranks()
            offset, total = base, count
            if not is_spread and ranks.size > 1 and count is not None and base is not None:
                offset, total = base + ranks.rank * count, count * ranks.size
                if self.sharding == "rows":
                    offset, ids = 0, torch.arange(base + ranks.rank, base + total, ranks.size, device="cpu")
            elif not is_spread and ranks.size > 1:
                offset = None
            samples = Samples.of(count, offset, ids, base=base, total=total, batch_size=size)
        if self.is_guessed and not samples.are_whole:
            raise ValueError(
                "a module of the model has batch_first=False, so its samples may be in dimension 1; say where: "
                "reproducible(..., sample_dim=1), or 0"
            )
        return samples

    def _mapped(self, count: int | None, slices: Slices) -> Samples:
        """Return the samples of a forward whose inputs vmap maps: a slice belongs to one sample, unless ids say more.

        The ids are mapped as the inputs are, so that one call for all slices draws the masks of all samples.
        """
        ids, size, total, ranks = self.ids, self.batch_size, slices.total, self.ranks or Ranks()
        if ids is None:
            whole, base = total * ranks.size, self.tally.samples
            if base is None:
                return Samples.of(None, None, None, base=base, total=whole, batch_size=size)
            start = base + (ranks.rank if self.sharding == "rows" else ranks.rank * total)
            ids = torch.arange(total, device="cpu") * (ranks.size if self.sharding == "rows" else 1) + start
            size = whole if base == 0 and size is None else size  # as without vmap, where a first forward is whole
        else:
            whole, base = total, 0
            if ids.shape[0] not in (total, total * (count or 1)):
                raise ValueError(
                    f"sample_ids has {ids.shape[0]} entries, and vmap maps the forward over {total} samples; expected "
                    "one id per sample"
                )
        each = ids.shape[0] // total
        places = mapped_over(ids.view(*slices.sizes.values(), each), tuple(slices.sizes))
        return Samples.of(each, 0, places, base=base, total=whole, batch_size=size, slices=total)

    def end(self, samples: Samples) -> None:
        """Count a forward that dropped."""
        counted, forwards, weighted = self.tally
        if self.ids is not None:
            return
        if samples.count is None or samples.total is None or counted is None:
            self.tally = Tally(None, forwards + 1, weighted)
        else:
            self.tally = Tally(
                counted + samples.total, forwards + 1, weighted + (forwards + 1) * samples.count * samples.slices
            )

    def check(self) -> None:
        """Check before a step ends that all processes got equally many samples.

        Raises:
            RuntimeError: if they did not.
        """
        if self.ranks is not None and self.ids is None and not self.is_stale and self.tally.samples is not None:
            self.ranks.check_equal(self.tally.samples // self.ranks.size, self.tally.weighted)

    def begin_step(self) -> None:
        """Begin a step with a count of 0."""
        self.is_stale = self.is_stale or self.ids is not None
        self.ids = None
        self.tally = Tally()
