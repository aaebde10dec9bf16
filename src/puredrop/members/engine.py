"""The engine that runs members on a batch: many in one forward, or one forward for each, which is the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puredrop.inspection.state import SharedContext
from puredrop.members.inputs import Batch
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.masks import DrawnMasks, Masks
from puredrop.members.sites import Intervention, MemberForward, SiteInput, SiteUse
from puredrop.members.thinned import CACHE, CompactRuns, RunStep
from puredrop.rng import Key

__all__ = ["Engine", "MemberMasks"]


@dataclass(frozen=True)
class MemberMasks:
    """The masks of all members, which make each of them a function.

    Args:
        seed: integer from which all masks are derived.
        is_shared: whether a member has one mask for all rows, or one for each.
        balanced: whether members of a block are balanced against each other.
        chosen_masks: path, call -> masks to use in place of drawn ones.
    """

    seed: int
    is_shared: bool = True
    balanced: bool = True
    chosen_masks: Callable[[str, int], Masks] | None = None

    def base(self, path: str) -> Key:
        """Return the key of a site's members: the contract's key with "ensemble" in place of the step."""
        return Key(self.seed).fold_in("").fold_in(path).fold_in("ensemble")

    def masks(self, path: str, call: int) -> Masks:
        """Return the masks for one use of a site."""
        return (
            self.chosen_masks(path, call)
            if self.chosen_masks
            else DrawnMasks(self.base(path).fold_in(call), self.balanced)
        )


def _ignore_slow_batching() -> Callable[[], object]:
    """Ignore torch's warning of operators without a batching rule: they run for one member after the other."""
    warnings.filterwarnings("ignore", message="There is a performance drop")
    filters: Any = warnings.filters
    mine = filters[0]

    def undo() -> None:
        if mine in warnings.filters:
            filters.remove(mine)

    return undo


_slow_batching_allowed = SharedContext(_ignore_slow_batching)


class Engine:
    """The runner of members of a model.

    Args:
        instrumented: the model.
        members: the masks of all members.
        read: function from what the model returns to the tensor that is averaged.
        runs: layers that are computed together.
        is_batched: whether many members run in one forward.
        cache: numbers of a layer's input that members of a run have at once.
        intervention: the action of sites in place of dropping, as of `MemberForward`.
    """

    def __init__(
        self,
        instrumented: InstrumentedModel,
        members: MemberMasks,
        read: Callable[[Any], Tensor],
        runs: list[list[RunStep]],
        is_batched: bool,
        cache: int = CACHE,
        intervention: Intervention | None = None,
    ) -> None:
        self.instrumented = instrumented
        self.members = members
        self.read = read
        self.is_batched = is_batched
        self.intervention = intervention
        self.uses: list[SiteUse] = []
        """The uses of sites in the last forward."""
        self.see: Callable[[SiteInput, Tensor], None] | None = None
        """Receives the input of each use of a site."""
        self._compact = CompactRuns(runs if is_batched else [], instrumented.now, cache)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Run a duplicate of the model until the block ends."""
        with self.instrumented.opened():
            self._compact.install(self.instrumented.model, self.instrumented.override)
            yield

    def outputs(self, batch: Batch, numbers: Sequence[int], first: int = 0) -> Tensor:
        """Return the outputs of some members.

        Args:
            batch: the rows.
            numbers: the members' numbers.
            first: number of rows before the batch.

        Returns:
            (members, ...).
        """
        run = self._run_together if self.is_batched else self._run_one_by_one
        return run(batch, numbers, None if self.members.is_shared else first)

    def _run_one_by_one(self, batch: Batch, numbers: Sequence[int], first: int | None) -> Tensor:
        return torch.stack([self._forward(batch, [number], torch.tensor(number), first) for number in numbers])

    def _run_together(self, batch: Batch, numbers: Sequence[int], first: int | None) -> Tensor:
        def forward(member: Tensor) -> Tensor:
            return self._forward(batch, numbers, member, first)

        with _slow_batching_allowed:
            outputs: Tensor = torch.func.vmap(forward, randomness="error")(torch.tensor(numbers))
        return outputs

    def _forward(self, batch: Batch, numbers: Sequence[int], member: Tensor, first: int | None) -> Tensor:
        moment = MemberForward(
            self.members.masks,
            self.members.base,
            numbers,
            member,
            batch.rows,
            first,
            intervention=self.intervention,
            axes=self.instrumented.plan.axes,
            see=self.see,
        )
        self._compact.begin()
        with self.instrumented.running(moment) as model:
            output = self.read(model(*batch.args, **batch.kwargs))
        self.uses = moment.uses
        return output
