"""The sites of a forward of members: the source of their masks, and the function that drops in place of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puredrop import ops
from puredrop._torch import transforms_active, without_modes
from puredrop.inspection.axes import Axis
from puredrop.members.masks import Masks
from puredrop.rng import Key, fold_in

__all__ = [
    "Axes",
    "Intervention",
    "MemberForward",
    "MemberFunction",
    "MemberSite",
    "SiteInput",
    "SiteUse",
    "applied",
    "guessed_axis",
]

_ENDLESS = 2**31
"""The assumed number of rows in a stream, so that the draw for one row does not depend on how many follow."""


@dataclass
class SiteUse:
    """One use of a site in a forward, as it was seen.

    Args:
        path: of the site.
        call: how many uses of it came before in the forward.
        p: its rate; NaN where more is drawn than decisions.
        sizes: of the decisions: what belongs to one sample first (heads may lie there), then the other dimensions, 1
            where one decision is shared.
        is_per_row: whether samples have decisions at all, which they share or not; weights have them for all samples.
        dim: where samples lie in the input; 0 if in no dimension.
        groups: number of groups, such as heads that come first, in each of which all samples lie; the decisions are on
            the input with a dimension for the groups, `dim`, before that of the samples.
    """

    path: str
    call: int
    p: float
    sizes: tuple[int, ...]
    is_per_row: bool = True
    dim: int = 0
    groups: int = 1

    @property
    def place(self) -> str:
        """The path, with the number of the use after the first one."""
        return f"{self.path}/{self.call}" if self.call else self.path

    @property
    def units(self) -> int:
        """The number of decisions for one sample."""
        return torch.Size(self.sizes).numel()


Intervention = Callable[[SiteUse, Tensor, int | None], Tensor | None]
Axes = Mapping[tuple[str, int | None], Axis | None]
"""Path and number of a use, or None for others of the path -> where the samples lie; None if in no dimension."""


class SiteInput(NamedTuple):
    """The input of one use of a site.

    Args:
        path: of the site.
        call: how many uses of it came before in the forward.
        dim: where samples lie by the layer's word; None, or `ops.PACKED`, if in no dimension.
        shape: sizes of the input.
        shared_dims: dimensions over which elements share one decision.
    """

    path: str
    call: int
    dim: int | None
    shape: tuple[int, ...]
    shared_dims: tuple[int, ...] = ()


def guessed_axis(site: SiteInput, rows: int) -> Axis | None:
    """Return where the samples lie by the layer's word, if the size there is a multiple of them."""
    dim = site.dim
    if dim is None or dim == ops.PACKED or dim in site.shared_dims or not dim < len(site.shape) or not rows:
        return None
    each, remainder = divmod(site.shape[dim], rows)
    return None if remainder else Axis(dim, 1, each)


@dataclass
class MemberForward:
    """A running forward of some members.

    Args:
        masks: path, call -> the masks of a use.
        base: path -> the key of a site's members.
        members: their numbers; one for a plain forward.
        member: the number, a tensor; under vmap it stands for all of them.
        rows: samples of the forward.
        first: how many samples come before them; None where all samples share a member's masks.
        intervention: the action of a use in place of dropping: (use, input, dimension of the samples in it or None)
            -> output, or None where the use drops as usual.
        axes: where the samples lie at each use of a site, as a survey has shown; a site that is missing is guessed.
        see: receives the input of each use.
        uses: the uses of sites so far.
    """

    masks: Callable[[str, int], Masks]
    base: Callable[[str], Key]
    members: Sequence[int]
    member: Tensor
    rows: int
    first: int | None
    uses: list[SiteUse] = field(default_factory=list)
    intervention: Intervention | None = None
    axes: Axes = field(default_factory=dict)
    see: Callable[[SiteInput, Tensor], None] | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self, path: str) -> int:
        """Count a use of a site and return its number."""
        call = self.counts.get(path, 0)
        self.counts[path] = call + 1
        return call

    def axis(self, site: SiteInput) -> Axis | None:
        """Return where the samples lie in a site's input; None where they have no decisions of their own.

        Examples are decisions on embeddings of positions, or one for the whole batch.

        Raises:
            ValueError: if the input does not hold the samples where the survey found them.
        """
        own, common = (site.path, site.call), (site.path, None)
        if own not in self.axes and common not in self.axes:
            return guessed_axis(site, self.rows)
        found = self.axes[own] if own in self.axes else self.axes[common]
        if found is None or not self.rows or found.dim in site.shared_dims:
            return None
        each, remainder = divmod(site.shape[found.dim], self.rows) if found.dim < len(site.shape) else (0, 1)
        if not remainder:
            if found.outer == 1:
                return Axis(found.dim, 1, each)
            if found.inner == 1:
                return Axis(found.dim, each, 1)
            if found.outer * found.inner == each:
                return found
        raise ValueError(
            f"site {site.path!r} drops from {site.shape}, which does not hold {self.rows} rows in dimension "
            f"{found.dim} as it did in the survey; predict such inputs with an ensemble of their own"
        )

    def keep(self, use: SiteUse, device: torch.device) -> Tensor:
        """Return the masks, bool (members, rows or 1, *sizes); 1 where all rows share them."""
        rows, first = (1, 0) if self.first is None or not use.is_per_row else (self.rows, self.first)
        flat = self.masks(use.path, use.call).keep(self.members, use.p, use.units * rows, use.units * first, device)
        return flat.view(len(self.members), -1, *use.sizes)


class MemberSite(ops.SiteKeySource):
    """The key of a layer while members run: it gives the members' masks.

    Args:
        now: the moment that is open.
        path: of the site; a part of one, such as a boundary between recurrent layers, ends in a number.
        dim: where samples lie in what it drops from; None, or `ops.PACKED`, if in no dimension.
    """

    def __init__(self, now: Callable[[], MemberForward], path: str, dim: int | None) -> None:
        self._now = now
        self._path = path
        self._dim = dim

    def resolve(self, kind: str, input: Tensor, place: ops.Place) -> tuple[Any, ops.Place]:
        """Return the members' decisions for one call; a key where the call draws more than decisions on a tensor."""
        moment = self._now()
        call = moment.begin(self._path)
        is_placed = place.window_shape is not None or place.sample_ids is not None
        site = SiteInput(self._path, call, self._dim, tuple(input.shape), place.shared_dims)
        if moment.see is not None and not is_placed:
            moment.see(site, input)
        if kind == "dropout" and not is_placed:
            return _MemberDecisions(moment, site), place
        moment.uses.append(SiteUse(self._path, call, math.nan, ()))
        key = fold_in(moment.base(self._path).fold_in(call).tensor(input.device), moment.member.to(input.device))
        axis = None if is_placed else moment.axis(site)
        return key, place if axis is None else _placed(site, place, axis, moment)

    def fold_in(self, data: int | str) -> MemberSite:
        """Return the site of a part, such as a boundary between recurrent layers."""
        return MemberSite(self._now, f"{self._path}/{data}", self._dim)

    def with_sample_dim(self, dim: int) -> MemberSite:
        """Return the same site for another dimension of the samples."""
        return MemberSite(self._now, self._path, dim)


def _placed(site: SiteInput, place: ops.Place, axis: Axis, moment: MemberForward) -> ops.Place:
    """Return the place of rows that share their noise, or follow other rows, in the draw from one key."""
    if moment.first is None:
        return ops.Place(tuple(sorted({*place.shared_dims, axis.dim})))
    if axis.outer > 1:
        raise ValueError(
            f"site {site.path!r} draws noise for {moment.rows} rows that lie within {axis.outer} groups in dimension "
            f"{axis.dim} of {site.shape}, such as heads that come first; put the rows first, or say masks='shared'"
        )
    sizes, offset = list(site.shape), [0] * len(site.shape)
    offset[axis.dim] = moment.first * axis.inner
    sizes[axis.dim] = _ENDLESS
    return ops.Place(place.shared_dims, tuple(sizes), tuple(offset))


@dataclass(frozen=True)
class _MemberDecisions(ops.DropoutOverride):
    """The decisions of members on the input of one call.

    Args:
        moment: the forward.
        site: the input.
    """

    moment: MemberForward
    site: SiteInput

    def drop(self, input: Tensor, p: float | Tensor, place: ops.Place, inplace: bool) -> Tensor:
        """Return the kept values, scaled."""
        # The functions called here are ours: the mode that finds dropout would only make each of them slower.
        with without_modes():
            use, dim = self._use(float(p))
            self.moment.uses.append(use)
            if use.groups == 1 or dim is None:
                return self._dropped(input, use, dim, inplace)
            grouped = input.unflatten(use.dim, (use.groups, -1))
            output = self._dropped(grouped, use, dim, inplace).flatten(use.dim, dim)
            return input if inplace and not transforms_active() else output

    def _dropped(self, input: Tensor, use: SiteUse, dim: int | None, inplace: bool) -> Tensor:
        """Return the kept values, scaled, of an input with a dimension for groups."""
        done = self.moment.intervention(use, input, dim) if self.moment.intervention else None
        if done is not None:
            return done
        if transforms_active():
            # Not in place: an input that no decision has reached has the memory of one member, not of all.
            output: Tensor = _DropFunction.apply(input, self.moment.member, self, use, dim)
            return output
        output = self.dropped(input.unsqueeze(0), use, dim).squeeze(0)
        return input.copy_(output) if inplace else output

    def _use(self, p: float) -> tuple[SiteUse, int | None]:
        """Return the use, and the dimension of the samples in the grouped input; None if decisions are no sample's."""
        site, axis = self.site, self.moment.axis(self.site)
        sizes = [1 if d in site.shared_dims else size for d, size in enumerate(site.shape)]
        if axis is None:
            return SiteUse(site.path, site.call, p, (1, *sizes), False), None
        sizes[axis.dim] = axis.outer
        dim = axis.dim if axis.outer == 1 else axis.dim + 1
        if axis.outer == 1:
            del sizes[axis.dim]
        return SiteUse(site.path, site.call, p, (axis.inner, *sizes), True, axis.dim, axis.outer), dim

    def dropped(self, input: Tensor, use: SiteUse, dim: int | None) -> Tensor:
        """Return every member's input after dropout.

        Args:
            input: (members or 1, ...).
            use: what is decided.
            dim: where samples lie, without the members' dimension; None if decisions are no sample's.
        """
        moment = self.moment
        if dim == 0 and moment.first is not None and use.units * moment.rows == input[0].numel():
            # Decisions in the order of elements, one for each.
            masks, flat = moment.masks(use.path, use.call), input.flatten(1)
            done = masks.dropped(moment.members, flat, use.p, use.units * moment.first)
            if done is not None:
                return done.view(-1, *input.shape[1:])
        keep = moment.keep(use, input.device)  # (members, rows or 1, own, *others)
        if dim is None:
            keep = keep[:, 0, 0]
        else:
            if keep.shape[1] == 1 and use.sizes[0] > 1:
                keep = keep.expand(-1, moment.rows, *[-1] * (keep.dim() - 2))
            keep = keep.flatten(1, 2).movedim(1, 1 + dim)
        return applied(input, keep, use.p)


def applied(input: Tensor, keep: Tensor, p: float) -> Tensor:
    """Return kept values scaled by 1/(1-p), and 0 elsewhere even if NaN stands there.

    As the contract has it: float16 and bfloat16 are multiplied as float32 and rounded once.
    """
    scale = 0.0 if p == 1 else 1 / (1 - p)
    zero = torch.zeros((), dtype=input.dtype, device=input.device)
    if input.dtype in (torch.float16, torch.bfloat16):
        return torch.where(keep, (input.float() * scale).to(input.dtype), zero)
    if input.numel() < keep.numel():  # an input that members share is scaled once
        return torch.where(keep, input * scale, zero)
    return torch.where(keep, input, zero).mul_(scale)


class MemberFunction(torch.autograd.Function):
    """Abstract: a function of all members at once, under vmap alone; predictions have no gradient."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*_: Any) -> Tensor:
        """Never called: what is no member's runs as ever."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""


class _DropFunction(MemberFunction):
    """All members' masks applied at once, to what the members have in common or to what each of them has."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        member: Tensor,
        members: _MemberDecisions,
        use: SiteUse,
        dim: int | None,
    ) -> tuple[Tensor, int]:
        input = input.unsqueeze(0) if in_dims[0] is None else input.movedim(in_dims[0], 0)
        return members.dropped(input, use, dim), 0
