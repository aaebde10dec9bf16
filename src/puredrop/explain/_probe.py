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

from puredrop.ensemble._drive import Drive
from puredrop.ensemble._engine import Engine, Members
from puredrop.ensemble._inputs import Batch, Inputs
from puredrop.ensemble._look import Look, look
from puredrop.ensemble._outputs import main_output
from puredrop.ensemble._source import Act, Use
from puredrop.reproducible import unwrapped

__all__ = ["Probe", "checked_number", "factors", "prepared", "units_of"]

_MEMORY = 256 * 2**20
_TOGETHER = 96


@dataclass(frozen=True)
class Probe:
    """A model and its data, ready to be asked.

    Args:
        root: the model, unwrapped.
        found: what a look has found.
        batches: all rows.
        seed: of the members' masks.
    """

    root: Module
    found: Look
    batches: tuple[Batch, ...]
    seed: int

    @property
    def uses(self) -> tuple[Use, ...]:
        """Of one forward, those that decide anything."""
        return tuple(use for use in self.found.uses if 0 < use.p < 1)

    @property
    def rows(self) -> int:
        """Of all batches."""
        return sum(batch.rows for batch in self.batches)

    @property
    def left(self) -> dict[str, str]:
        """Path of what drops and is not reached -> why."""
        return dict(self.found.left)

    @contextmanager
    def opened(self) -> Iterator[Drive]:
        """Take the model over; it is as it was afterwards. No gradients, unless they are switched on inside."""
        drive = Drive(self.root, self.found.plan, self.batches[0].dim)
        with drive.opened():
            yield drive

    def forward(
        self,
        drive: Drive,
        batch: Batch,
        act: Act | None = None,
        *,
        member: int = 0,
        first: int = 0,
        is_shared: bool = False,
    ) -> Tensor:
        """One forward, every site doing what `act` says, or a member's; differentiable where gradients are on."""
        members = Members(self.seed, is_shared, balanced=False)
        return Engine(drive, members, main_output, [], is_batched=False, act=act).outputs(batch, [member], first)[0]

    def members(
        self,
        drive: Drive,
        batch: Batch,
        numbers: Sequence[int],
        read: Callable[[Any], Tensor] = main_output,
        *,
        first: int = 0,
        act: Act | None = None,
        is_shared: bool = False,
    ) -> Iterator[Tensor]:
        """What members give on a batch, (members, ...) of so many at a time as memory holds.

        Args:
            drive: the open model.
            batch: the rows.
            numbers: of the members, whose masks are iid.
            read: from what the model returns.
            first: rows before these.
            act: what sites do in the place of dropping; None for each where it says so.
            is_shared: whether a member has one mask for all rows, not one for each.
        """
        members = Members(self.seed, is_shared, balanced=False)
        engine = Engine(drive, members, read, [], is_batched=not self.found.slow, act=act)
        bytes_of_one = self.found.per_member + self.found.per_row * batch.rows
        size = int(max(1, min(_MEMORY // bytes_of_one, _TOGETHER)))
        for start in range(0, len(numbers), size):
            yield engine.outputs(batch, numbers[start : start + size], first)


def prepared(
    model: Module, x: Any, *, seed: int = 0, sample_dim: int = 0, batch_size: int = 1024, may_be_silent: bool = False
) -> Probe:
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
            found.left[use.path] = "draws more than decisions (Gaussian or alpha noise); it is off"
    if not may_be_silent and not any(0 < use.p < 1 for use in found.uses):
        raise ValueError(
            "model has only noise that is no decision on elements (Gaussian or alpha), which is not explained"
        )
    return Probe(root, found, batches, seed)


def factors(use: Use, input: Tensor, dim: int | None) -> Tensor:
    """Ones, a number for each decision of a forward, in a shape that multiplies the input."""
    sizes = list(use.sizes[1:])
    if dim is not None:
        sizes.insert(dim, input.shape[dim])
    return torch.ones(sizes, dtype=input.dtype, device=input.device)


def units_of(values: Tensor, rows: int, dim: int | None) -> Tensor:
    """Values in the shape of `factors` as (rows, units); of decisions that all rows share, (1, units)."""
    return values.reshape(1, -1) if dim is None else values.movedim(dim, 0).reshape(rows, -1)


def checked_number(name: str, value: Any, least: int = 1) -> int:
    """An integer argument.

    Raises:
        TypeError, ValueError: if it is none, or below the least.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected an integer, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more")
    return value
