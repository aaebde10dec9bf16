"""Units of a model removed, hidden behind noise, or recorded: what a dropout site sees, or a module's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.ensemble._drive import Drive
from puredrop.ensemble._inputs import Batch
from puredrop.ensemble._source import Use
from puredrop.explain._probe import Probe

__all__ = ["Damage", "Places", "gaussian", "largest", "ordered"]

Damage = Callable[[str, Tensor], Tensor]
"""(place, activations with rows first) -> activations."""


class Places:
    """Where units lie: at the sites that drop, or behind modules that are named.

    Args:
        probe: the model and its data.
        at: paths of modules whose outputs are the units; None for what dropout sites are given.
    """

    def __init__(self, probe: Probe, at: Sequence[str] | None) -> None:
        self._probe = probe
        self._at = at
        self._damage: Damage | None = None
        for path in at or ():
            probe.root.get_submodule(path)

    @contextmanager
    def opened(self) -> Iterator[Drive]:
        """Take the model over."""
        with self._probe.opened() as drive:
            hooks = [
                drive.model.get_submodule(path).register_forward_hook(self._behind(path)) for path in self._at or ()
            ]
            try:
                yield drive
            finally:
                for one in hooks:
                    one.remove()

    def outputs(self, drive: Drive, batch: Batch, damage: Damage) -> Tensor:
        """What the model gives when the units are damaged; dropout itself is off."""
        self._damage = damage
        return self._probe.forward(drive, batch, self._act)

    def _act(self, use: Use, input: Tensor, dim: int | None) -> Tensor:
        if self._at is not None or dim is None:
            return input
        place = use.path if not use.call else f"{use.path}/{use.call}"
        return self._damaged(place, input, dim)

    def _behind(self, path: str) -> Any:
        def hook(module: Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                raise ValueError(f"at names {path}, which returns {type(output).__name__}; expected a tensor's module")
            return self._damaged(path, output, self._probe.batches[0].dim)

        return hook

    def _damaged(self, place: str, input: Tensor, dim: int) -> Tensor:
        assert self._damage is not None
        return self._damage(place, input.movedim(dim, 0)).movedim(0, dim)


def ordered(share: float, orders: dict[str, Tensor]) -> Damage:
    """Remove the first share of units in an order of each place, and scale the others so that sums keep their size.

    Args:
        share: of the units of each place.
        orders: place -> random numbers, one for each unit; the lowest go first.
    """

    def damage(place: str, h: Tensor) -> Tensor:
        rank = orders[place]
        number = round(share * rank.numel())
        gone = (rank.argsort().argsort() < number).view(h.shape[1:]).to(h.device)
        scale = rank.numel() / max(1, rank.numel() - number)
        return torch.where(gone, torch.zeros((), dtype=h.dtype, device=h.device), h * scale)

    return damage


def largest(share: float) -> Damage:
    """Remove each row's share of the largest activations, by size."""

    def damage(place: str, h: Tensor) -> Tensor:
        size = h.flatten(1).abs()
        number = round(share * size.shape[1])
        which = size.topk(number, 1).indices
        return h.flatten(1).scatter(1, which, 0.0).view(h.shape)

    return damage


def gaussian(scale: float, generator: torch.Generator) -> Damage:
    """Add noise of a multiple of the root mean square of the place's activations."""

    def damage(place: str, h: Tensor) -> Tensor:
        noise = torch.randn(h.shape, generator=generator).to(h.device, h.dtype)
        return h + scale * float(h.square().mean().sqrt()) * noise

    return damage


class Recorder:
    """Activations as they are, kept by place, (rows, units).

    Attributes:
        seen: place -> parts.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def __call__(self, place: str, h: Tensor) -> Tensor:
        self.seen.setdefault(place, []).append(h.flatten(1).detach().cpu().double())
        return h

    @property
    def activations(self) -> dict[str, Tensor]:
        """Of all rows."""
        return {place: torch.cat(parts) for place, parts in self.seen.items()}

    def sparsity(self) -> float:
        """Share of activations that are 0."""
        all_of = self.activations.values()
        return sum(int((h == 0).sum()) for h in all_of) / sum(h.numel() for h in all_of)

    def correlation(self) -> float:
        """Mean |correlation| between units of a place over rows, of those that vary."""
        total, pairs = 0.0, 0
        for h in self.activations.values():
            h = h[:, h.std(0) > 1e-9]
            if h.shape[1] < 2:
                continue
            r = torch.corrcoef(h.T)
            total += float(r.abs().sum()) - len(r)
            pairs += len(r) * (len(r) - 1)
        return total / pairs if pairs else math.nan
