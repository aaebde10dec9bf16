"""The sites of a forward of members: the source of their masks, and the function that drops in place of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from puredrop import ops
from puredrop._torch import transforms_active, without_modes
from puredrop.members.masks import Masks
from puredrop.rng import Key, fold_in

__all__ = ["Intervention", "MemberForward", "MemberFunction", "MemberSite", "SiteUse", "applied"]

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
    """

    path: str
    call: int
    p: float
    sizes: tuple[int, ...]
    is_per_row: bool = True

    @property
    def place(self) -> str:
        """The path, with the number of the use after the first one."""
        return f"{self.path}/{self.call}" if self.call else self.path

    @property
    def units(self) -> int:
        """The number of decisions for one sample."""
        return torch.Size(self.sizes).numel()


Intervention = Callable[[SiteUse, Tensor, int | None], Tensor | None]


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
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self, path: str) -> int:
        """Count a use of a site and return its number."""
        call = self.counts.get(path, 0)
        self.counts[path] = call + 1
        return call

    def samples_in(self, input: Tensor, dim: int | None, place: ops.Place) -> int | None:
        """Return the dimension of the samples in a site's input; None where they have no decisions of their own.

        Examples are decisions on embeddings of positions, which have another size there, or one for the whole batch.
        """
        if dim is None or dim in place.shared_dims or not dim < input.dim() or not self.rows:
            return None
        return dim if input.shape[dim] % self.rows == 0 else None

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
        self._dim = None if dim == ops.PACKED else dim

    def resolve(self, kind: str, input: Tensor, place: ops.Place) -> tuple[Any, ops.Place]:
        """Return the members' decisions for one call; a key where the call draws more than decisions on a tensor."""
        moment = self._now()
        call = moment.begin(self._path)
        if kind == "dropout" and place.window_shape is None and place.sample_ids is None:
            return _MemberDecisions(moment, self._path, call, self._dim), place
        moment.uses.append(SiteUse(self._path, call, math.nan, ()))
        key = fold_in(moment.base(self._path).fold_in(call).tensor(input.device), moment.member.to(input.device))
        dim = moment.samples_in(input, self._dim, place)
        if place.window_shape is None and place.sample_ids is None and dim is not None:
            place = _placed(input, place, dim, moment)
        return key, place

    def fold_in(self, data: int | str) -> MemberSite:
        """Return the site of a part, such as a boundary between recurrent layers."""
        return MemberSite(self._now, f"{self._path}/{data}", self._dim)

    def with_sample_dim(self, dim: int) -> MemberSite:
        """Return the same site for another dimension of the samples."""
        return MemberSite(self._now, self._path, dim)


def _placed(input: Tensor, place: ops.Place, dim: int, moment: MemberForward) -> ops.Place:
    """Return the place of rows that share their noise, or follow other rows, in the draw from one key."""
    if moment.first is None:
        return ops.Place(tuple(sorted({*place.shared_dims, dim})))
    sizes, offset = list(input.shape), [0] * input.dim()
    offset[dim] = moment.first * (sizes[dim] // moment.rows)
    sizes[dim] = _ENDLESS
    return ops.Place(place.shared_dims, tuple(sizes), tuple(offset))


@dataclass(frozen=True)
class _MemberDecisions(ops.DropoutOverride):
    """The decisions of members on the input of one call.

    Args:
        moment: the forward.
        path, call: the use.
        dim: where samples lie in the input, None if in no dimension.
    """

    moment: MemberForward
    path: str
    call: int
    dim: int | None

    def drop(self, input: Tensor, p: float | Tensor, place: ops.Place, inplace: bool) -> Tensor:
        """Return the kept values, scaled."""
        # The functions called here are ours: the mode that finds dropout would only make each of them slower.
        with without_modes():
            use, dim = self._use(input, float(p), place)
            self.moment.uses.append(use)
            done = self.moment.intervention(use, input, dim) if self.moment.intervention else None
            if done is not None:
                return done
            if transforms_active():
                # Not in place: an input that no decision has reached has the memory of one member, not of all.
                output: Tensor = _DropFunction.apply(input, self.moment.member, self, use, dim)
                return output
            output = self.dropped(input.unsqueeze(0), use, dim).squeeze(0)
            return input.copy_(output) if inplace else output

    def _use(self, input: Tensor, p: float, place: ops.Place) -> tuple[SiteUse, int | None]:
        """Return the use, and the dimension of the samples in the input; None if decisions belong to no sample."""
        dim = self.moment.samples_in(input, self.dim, place)
        sizes = [1 if d in place.shared_dims else size for d, size in enumerate(input.shape)]
        own = 1 if dim is None else sizes.pop(dim) // self.moment.rows
        return SiteUse(self.path, self.call, p, (own, *sizes), dim is not None), dim

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
