"""A model in eval mode whose sites do what a question asks: drop as members do, scale, remove, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.members.engine import Engine, Members
from puredrop.members.exact import exact, listed
from puredrop.members.inputs import Batch, Inputs, checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output
from puredrop.members.sites import Intervention, SiteUse
from puredrop.members.survey import Survey, look
from puredrop.pinning import unwrapped

__all__ = ["Parts", "PreparedModel", "alone", "factors", "noises", "plain", "prepare", "signs", "units_of"]

_MEMORY = 256 * 2**20
_ENUMERATED = 12
"""Units of which all 2^n masks are run."""

Parts = tuple[tuple[Batch, Tensor], ...]
"""Batches with what belongs to their rows."""


@dataclass(frozen=True)
class PreparedModel:
    """A model and its data, ready to be asked.

    Args:
        root: the model, unwrapped.
        found: what a look has found.
        batches: all rows.
        seed: of the members' masks.
    """

    root: Module
    found: Survey
    batches: tuple[Batch, ...]
    seed: int

    @property
    def uses(self) -> tuple[SiteUse, ...]:
        """Of one forward, those that decide anything."""
        return tuple(use for use in self.found.uses if 0 < use.p < 1)

    @property
    def units(self) -> int:
        """Decisions of a member."""
        return sum(use.units for use in self.uses)

    @property
    def rows(self) -> int:
        """Of all batches."""
        return sum(batch.rows for batch in self.batches)

    @property
    def skipped(self) -> dict[str, str]:
        """Path of what drops and is not reached -> why."""
        return dict(self.found.skipped)

    @property
    def is_per_row(self) -> bool:
        """Whether each row has decisions of its own at every site; weights that drop have them for all rows."""
        return all(use.is_per_row for use in self.uses)

    @property
    def can_list(self) -> bool:
        """Whether all masks are run in place of some."""
        return self.units <= _ENUMERATED and self.is_per_row

    def parts(self, y: Any) -> Parts:
        """Batches with what belongs to their rows.

        Raises:
            ValueError: if y has not one entry for each row.
        """
        found = torch.as_tensor(y.to_numpy() if hasattr(y, "to_numpy") else y)
        if not found.dim() or len(found) != self.rows:
            raise ValueError(f"y has shape {tuple(found.shape)}; expected one entry for each of {self.rows} rows of x")
        split = found.to(self.batches[0].tensors[0].device).split([batch.rows for batch in self.batches])
        return tuple(zip(self.batches, split, strict=True))

    @contextmanager
    def opened(self) -> Iterator[InstrumentedModel]:
        """Take the model over; it is as it was afterwards. No gradients, unless they are switched on inside."""
        instrumented = InstrumentedModel(self.root, self.found.plan, self.batches[0].dim)
        with instrumented.opened():
            yield instrumented

    def forward(
        self,
        instrumented: InstrumentedModel,
        batch: Batch,
        intervention: Intervention | None = None,
        *,
        member: int = 0,
        first: int = 0,
        is_shared: bool = False,
    ) -> Tensor:
        """One forward, every site doing what `act` says, or a member's; differentiable where gradients are on."""
        members = Members(self.seed, is_shared, balanced=False)
        return Engine(instrumented, members, main_output, [], is_batched=False, intervention=intervention).outputs(
            batch, [member], first
        )[0]

    def members(
        self,
        instrumented: InstrumentedModel,
        batch: Batch,
        numbers: Sequence[int],
        read: Callable[[Any], Tensor] = main_output,
        *,
        first: int = 0,
        intervention: Intervention | None = None,
        is_shared: bool = False,
    ) -> Tensor:
        """What members give on a batch, (members, ...), computed so many at a time as memory holds.

        Args:
            drive: the open model.
            batch: the rows.
            numbers: of the members, whose masks are iid.
            read: from what the model returns.
            first: rows before these.
            act: what sites do in the place of dropping; None for each where it says so.
            is_shared: whether a member has one mask for all rows, not one for each.
        """
        engine = self._engine(instrumented, Members(self.seed, is_shared, balanced=False), read, intervention)
        size = self.found.at_once(batch.rows, _MEMORY)
        few = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return torch.cat([engine.outputs(batch, some, first) for some in few])

    def mean_of_all(
        self,
        instrumented: InstrumentedModel,
        batch: Batch,
        read: Callable[[Any], Tensor] = main_output,
        intervention: Intervention | None = None,
    ) -> Tensor:
        """The mean of what is read over all 2^n masks, float64."""
        # Each row's mean is over the same masks, whether rows share them or not.
        members = Members(self.seed, is_shared=True, given=listed(self.uses))
        return exact(self._engine(instrumented, members, read, intervention), batch, self.uses, 256)

    def _engine(
        self,
        instrumented: InstrumentedModel,
        members: Members,
        read: Callable[[Any], Tensor],
        intervention: Intervention | None,
    ) -> Engine:
        return Engine(instrumented, members, read, [], is_batched=not self.found.slow, intervention=intervention)


def prepare(
    model: Module, x: Any, *, seed: int = 0, sample_dim: int = 0, batch_size: int = 1024, may_be_silent: bool = False
) -> PreparedModel:
    """Look at a model and its data.

    Args:
        model: any module.
        x: rows, as `DropoutEnsemble.predict` takes them.
        seed: of the members' masks.
        sample_dim: dimension of the rows.
        batch_size: rows at once.
        may_be_silent: whether a model will do whose sites all have rate 0.

    Raises:
        TypeError, ValueError: for what is no data, or fewer than two rows; for a model of which no dropout is reached.
    """
    root = unwrapped(model)
    batches = tuple(Inputs(root, sample_dim).batches(x, checked_number("batch_size", batch_size)))
    rows = sum(batch.rows for batch in batches)
    if rows < 2:
        raise ValueError(f"x has {rows} row; expected two at least, or nothing can be said about other rows")
    members = Members(seed, is_shared=False, balanced=False)
    found = look(root, batches[0], members, main_output, may_be_silent=may_be_silent)
    for use in found.uses:
        if math.isnan(use.p):
            if ":" in use.path:
                raise ValueError(
                    f"model draws more than decisions in a function ({use.path}); expected a layer there, which can be "
                    "switched off"
                )
            found.skipped[use.path] = "draws more than decisions (Gaussian or alpha noise); it is off"
    prepared = PreparedModel(root, found, batches, seed)
    if not may_be_silent and not prepared.uses:
        raise ValueError(
            "model has only noise that is no decision on elements (Gaussian or alpha), which is not explained"
        )
    return prepared


def plain(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
    """Nothing is dropped."""
    return input


def alone(place: str) -> Intervention:
    """One use of a site drops, all others do not."""
    return lambda use, input, dim: None if use.place == place else input


def factors(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
    """Ones, a number for each decision of a forward, in a shape that multiplies the input."""
    sizes = list(use.sizes[1:])
    if dim is not None:
        sizes.insert(dim, input.shape[dim])
    return torch.ones(sizes, dtype=input.dtype, device=input.device)


def units_of(values: Tensor, rows: int, dim: int | None) -> Tensor:
    """Values in the shape of `factors` as (rows, units); of decisions that all rows share, (1, units)."""
    return values.reshape(1, -1) if dim is None else values.movedim(dim, 0).reshape(rows, -1)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or 1 with equal chances, drawn on the CPU so that the device does not matter."""
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def noises(
    outputs: Tensor, most: int, generator: torch.Generator, *, can_sum: bool = True
) -> tuple[Iterator[Tensor], int, bool]:
    """The ε of products JᵀSε whose squares make up diag(JᵀSSᵀJ).

    With an ε for each output of a row, they add up to it: no error, and seldom more of them than an estimate takes.
    Else ε are drawn, and the expected square is the diagonal.

    Args:
        outputs: (rows, ...).
        most: how many ε may be taken.
        generator: of those that are drawn.
        can_sum: whether no row's outputs depend on another's factors, so that all rows can be asked at once.

    Returns:
        The ε, their number, and whether they were drawn.
    """
    size = outputs[0].numel()
    if size > most or not can_sum:
        return (signs(outputs, generator) for _ in range(most)), most, True
    basis = torch.eye(size, dtype=outputs.dtype, device=outputs.device).view(size, *outputs.shape[1:])
    return (one.expand_as(outputs) for one in basis), size, False
