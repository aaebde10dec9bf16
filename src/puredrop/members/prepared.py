"""A model in eval mode whose sites follow an intervention: drop as members do, scale, remove units, or keep all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.exact import enumerated_masks, exact
from puredrop.members.inputs import Batch, Inputs, checked_number
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output
from puredrop.members.sites import Intervention, SiteUse
from puredrop.members.survey import Survey, survey
from puredrop.pinning import unwrapped

__all__ = [
    "PreparedModel",
    "Runner",
    "TargetedBatches",
    "drop_only_at",
    "flatten_units",
    "keep_all",
    "ones_mask",
    "prepare",
    "probe_vectors",
    "random_signs",
    "targets_of",
]

_MEMORY = 256 * 2**20
_ENUMERATED = 12
"""Up to so many units all 2^n masks are run."""

TargetedBatches = tuple[tuple[Batch, Tensor], ...]
"""Batches of rows, each with the targets of its rows."""


@dataclass(frozen=True)
class PreparedModel:
    """A model that was surveyed, and rows of data: every measure of `puredrop.explain` takes it in place of the model.

    Args:
        root: the model, unwrapped.
        survey: where the model drops, and how that is reached.
        batches: all rows.
        seed: of the members' masks.
        output_shape: of what the model returns for two rows.
        class_dim: dimension of the classes in the model's outputs, which `forward` and `members` move to dimension 1;
            None as long as it is not known.
    """

    root: Module
    survey: Survey
    batches: tuple[Batch, ...]
    seed: int
    output_shape: tuple[int, ...]
    class_dim: int | None = None

    @property
    def uses(self) -> tuple[SiteUse, ...]:
        """The uses of sites in one forward that leave anything to chance."""
        return tuple(use for use in self.survey.uses if 0 < use.p < 1)

    @property
    def units(self) -> int:
        """The number of decisions in a member's mask."""
        return sum(use.units for use in self.uses)

    @property
    def rows(self) -> int:
        """The number of rows in all batches."""
        return sum(batch.rows for batch in self.batches)

    @property
    def skipped(self) -> dict[str, str]:
        """Path of a module or call that drops and is off here -> the reason."""
        return dict(self.survey.skipped)

    @property
    def is_per_row(self) -> bool:
        """Return whether each row has decisions of its own at every site; dropped weights are shared by all rows."""
        return all(use.is_per_row for use in self.uses)

    @property
    def can_list(self) -> bool:
        """Return whether the model has so few units that all masks are run."""
        return self.units <= _ENUMERATED and self.is_per_row

    def targets(self, y: Any) -> Tensor:
        """Return the targets as a tensor on the model's device.

        Raises:
            ValueError: if y has not one entry for each row.
        """
        targets = targets_of(y)
        if not targets.dim() or len(targets) != self.rows:
            raise ValueError(
                f"y has shape {tuple(targets.shape)}; expected one entry for each of {self.rows} rows of x"
            )
        return targets.to(self.batches[0].tensors[0].device)

    def with_targets(self, y: Any) -> TargetedBatches:
        """Return each batch with the targets of its rows.

        Raises:
            ValueError: if y has not one entry for each row.
        """
        return tuple(zip(self.batches, self.targets(y).split([batch.rows for batch in self.batches]), strict=True))

    def on(self, x: Any, *, seed: int, sample_dim: int = 0, batch_size: int = 1024) -> PreparedModel:
        """Return the same survey of the model with other rows.

        Raises:
            TypeError, ValueError: for what is no data, or fewer than two rows.
        """
        return replace(self, batches=_batches(self.root, x, sample_dim, batch_size), seed=seed)

    def with_class_dim(self, class_dim: int) -> PreparedModel:
        """Return the same model and rows with another dimension of the classes."""
        return replace(self, class_dim=class_dim)

    def read(self, output: Any) -> Tensor:
        """Return the tensor among what the model returns, classes in dimension 1."""
        tensor = main_output(output)
        return tensor if self.class_dim in (None, 1) else tensor.movedim(self.class_dim, 1)

    def as_given(self, values: Tensor) -> Tensor:
        """Return values with classes where the model's outputs have them: the inverse of `read`."""
        return values if self.class_dim in (None, 1) else values.movedim(1, self.class_dim)

    @contextmanager
    def instrument(self) -> Iterator[Runner]:
        """Take the model over until the block ends. Gradients are off, unless they are switched on inside."""
        instrumented = InstrumentedModel(self.root, self.survey.plan, self.batches[0].dim)
        with instrumented.opened():
            yield Runner(self, instrumented)


@dataclass(frozen=True)
class Runner:
    """Runs a prepared model while it is taken over; `PreparedModel.instrument` gives it.

    Args:
        prepared: the model and its rows.
        instrumented: the same model, taken over.
    """

    prepared: PreparedModel
    instrumented: InstrumentedModel

    @property
    def model(self) -> Module:
        """The model that runs, our layers in the place of others."""
        return self.instrumented.model

    def forward(
        self,
        batch: Batch,
        intervention: Intervention | None = None,
        *,
        member: int = 0,
        first: int = 0,
        is_shared: bool = False,
    ) -> Tensor:
        """Return the outputs of one forward, differentiable where gradients are on.

        Args:
            batch: the rows.
            intervention: what sites do in place of dropping; where it gives None, they drop as the member does.
            member: number of the member whose masks apply.
            first: number of rows before these.
            is_shared: whether all rows share the member's mask.
        """
        members = MemberMasks(self.prepared.seed, is_shared, balanced=False)
        return Engine(
            self.instrumented, members, self.prepared.read, [], is_batched=False, intervention=intervention
        ).outputs(batch, [member], first)[0]

    def members(
        self,
        batch: Batch,
        numbers: Sequence[int],
        read: Callable[[Any], Tensor] | None = None,
        *,
        first: int = 0,
        intervention: Intervention | None = None,
        is_shared: bool = False,
    ) -> Tensor:
        """Return what members give on a batch, (members, ...), computed so many at a time as memory holds.

        Args:
            batch: the rows.
            numbers: of the members, whose masks are independent.
            read: from what the model returns to a tensor; by default to its outputs.
            first: number of rows before these.
            intervention: what sites do in place of dropping; where it gives None, they drop.
            is_shared: whether all rows share a member's mask.
        """
        engine = self._engine(MemberMasks(self.prepared.seed, is_shared, balanced=False), read, intervention)
        size = self.prepared.survey.at_once(batch.rows, _MEMORY)
        groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return torch.cat([engine.outputs(batch, group, first) for group in groups])

    def mean_of_all(
        self,
        batch: Batch,
        read: Callable[[Any], Tensor] | None = None,
        intervention: Intervention | None = None,
    ) -> Tensor:
        """Return the mean over all 2^n masks of what is read, float64."""
        # Each row's mean is over the same masks, whether rows share them or not.
        members = MemberMasks(self.prepared.seed, is_shared=True, chosen_masks=enumerated_masks(self.prepared.uses))
        return exact(self._engine(members, read, intervention), batch, self.prepared.uses, 256)

    def _engine(
        self,
        members: MemberMasks,
        read: Callable[[Any], Tensor] | None,
        intervention: Intervention | None,
    ) -> Engine:
        return Engine(
            self.instrumented,
            members,
            read or self.prepared.read,
            [],
            is_batched=not self.prepared.survey.slow,
            intervention=intervention,
        )


def targets_of(y: Any) -> Tensor:
    """Return targets that a user gives, such as a column of a table, as a tensor."""
    return torch.tensor(y.to_numpy()) if hasattr(y, "to_numpy") else torch.as_tensor(y)


def prepare(
    model: Module | PreparedModel,
    x: Any,
    *,
    seed: int = 0,
    sample_dim: int = 0,
    batch_size: int = 1024,
    may_be_silent: bool = False,
) -> PreparedModel:
    """Survey a model on its data; a model that is prepared keeps its survey and gets the data.

    Args:
        model: any module, or one that is prepared.
        x: rows, as `DropoutEnsemble.predict` takes them.
        seed: of the members' masks.
        sample_dim: dimension of the rows.
        batch_size: rows at once.
        may_be_silent: whether a model will do whose sites all have rate 0.

    Raises:
        TypeError, ValueError: for what is no data, or fewer than two rows; for a model of which no dropout is reached.
    """
    if isinstance(model, PreparedModel):
        return model.on(x, seed=seed, sample_dim=sample_dim, batch_size=batch_size)
    root, shapes = unwrapped(model), []

    def read(output: Any) -> Tensor:
        tensor = main_output(output)
        shapes.append(tuple(tensor.shape))
        return tensor

    batches = _batches(root, x, sample_dim, batch_size)
    members = MemberMasks(seed, is_shared=False, balanced=False)
    surveyed = survey(root, batches[0], members, read, may_be_silent=may_be_silent)
    for use in surveyed.uses:
        if math.isnan(use.p):
            if ":" in use.path:
                raise ValueError(
                    f"model draws more than decisions in a function ({use.path}); expected a layer there, which can be "
                    "switched off"
                )
            surveyed.skipped[use.path] = "draws more than decisions (Gaussian or alpha noise); it is off"
    prepared = PreparedModel(root, surveyed, batches, seed, shapes[0])
    if not may_be_silent and not prepared.uses:
        raise ValueError(
            "model has only noise that is no decision on elements (Gaussian or alpha), which is not explained"
        )
    return prepared


def _batches(root: Module, x: Any, sample_dim: int, batch_size: int) -> tuple[Batch, ...]:
    batches = tuple(Inputs(root, sample_dim).batches(x, checked_number("batch_size", batch_size)))
    rows = sum(batch.rows for batch in batches)
    if rows < 2:
        raise ValueError(f"x has {rows} row; expected two at least, or nothing can be said about other rows")
    return batches


def keep_all(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
    """Return the input: the intervention under which nothing is dropped."""
    return input


def drop_only_at(place: str) -> Intervention:
    """Return the intervention under which one use of a site drops, and no other."""
    return lambda use, input, dim: None if use.place == place else input


def ones_mask(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
    """Return ones, a number for each decision of a forward, in a shape that multiplies the input."""
    sizes = list(use.sizes[1:])
    if dim is not None:
        sizes.insert(dim, input.shape[dim])
    return torch.ones(sizes, dtype=input.dtype, device=input.device)


def flatten_units(values: Tensor, rows: int, dim: int | None) -> Tensor:
    """Reshape values in the shape of `ones_mask` to (rows, units), or (1, units) where all rows share decisions."""
    return values.reshape(1, -1) if dim is None else values.movedim(dim, 0).reshape(rows, -1)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw -1 or 1 with equal chances, on the CPU so that the device does not matter."""
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def probe_vectors(
    outputs: Tensor, most_vectors: int, generator: torch.Generator, *, can_sum: bool = True
) -> tuple[Iterator[Tensor], int, bool]:
    """Return the vectors ε of products JᵀSε whose squares make up diag(JᵀSSᵀJ).

    One ε for each output of a row gives the diagonal as a sum: without error, and seldom with more of them than an
    estimate takes. Otherwise random signs are drawn (Hutchinson), and the expected square is the diagonal.

    Args:
        outputs: (rows, ...).
        most_vectors: how many ε may be taken.
        generator: of those that are drawn.
        can_sum: whether no row's outputs depend on another row's mask, so that one product serves all rows.

    Returns:
        The ε, their number, and whether they were drawn.
    """
    size = outputs[0].numel()
    if size > most_vectors or not can_sum:
        return (random_signs(outputs, generator) for _ in range(most_vectors)), most_vectors, True
    basis = torch.eye(size, dtype=outputs.dtype, device=outputs.device).view(size, *outputs.shape[1:])
    return (vector.expand_as(outputs) for vector in basis), size, False
