"""Units of a model removed, hidden behind noise, or recorded: what a dropout site sees, or a module's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.inspection.watch import holds_dropout, rate_of
from puredrop.members.inputs import Batch
from puredrop.members.prepared import PreparedModel
from puredrop.members.sites import SiteUse

__all__ = ["Damage", "Places", "Recorder", "gaussian", "largest", "ordered"]

Damage = Callable[[str, Tensor], Tensor]
"""(place, activations with rows first) -> activations."""


class Places:
    """Where units lie: at what drops, also at a rate of 0, or behind modules that are named.

    Args:
        probe: the model and its data.
        at: paths of modules whose outputs are the units; None for what dropout layers and functions are given.

    Raises:
        ValueError: if nothing in the model is there to drop from rows, and no module is named.
    """

    def __init__(self, prepared: PreparedModel, at: Sequence[str] | None) -> None:
        self._probe = prepared
        self._takes_sites = at is None
        self._damage: Damage = lambda place, h: h
        # Layers of rate 0 ask for no masks.
        self._hooked = (
            [path for path, one in prepared.root.named_modules() if _is_silent(one)] if at is None else list(at)
        )
        for path in self._hooked:
            prepared.root.get_submodule(path)
        if not self._hooked and not (at is None and any(use.is_per_row for use in prepared.uses)):
            raise ValueError(
                "no dropout of the model acts on its rows' activations; name the modules whose outputs are units, as "
                "in at=['1', '3']"
            )

    @contextmanager
    def opened(self) -> Iterator[Callable[[Batch, Damage], Tensor]]:
        """Take the model over: a function of rows and damage to what the model gives then, dropout itself off."""
        with self._probe.instrument() as instrumented, ExitStack() as stack:
            for path in self._hooked:
                hook = self._behind(path)
                stack.callback(instrumented.model.get_submodule(path).register_forward_hook(hook).remove)

            def outputs(batch: Batch, damage: Damage) -> Tensor:
                self._damage = damage
                return self._probe.forward(instrumented, batch, self._act)

            yield outputs

    def _act(self, use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        return self._damaged(use.place, input, dim) if self._takes_sites and dim is not None else input

    def _behind(self, path: str) -> Callable[[Module, Any, Any], Tensor]:
        def hook(module: Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ValueError(f"at names {path}, which returns {type(output).__name__}; expected a tensor's module")
            return self._damaged(path, output, self._probe.batches[0].dim)

        return hook

    def _damaged(self, place: str, input: Tensor, dim: int) -> Tensor:
        return self._damage(place, input.movedim(dim, 0)).movedim(0, dim)


def _is_silent(module: Module) -> bool:
    return holds_dropout(module) and rate_of(module) == 0


def ordered(share: float, ranks: dict[str, Tensor]) -> Damage:
    """Remove the first share of units in an order of each place, and scale the others so that sums keep their size.

    Args:
        share: of the units of each place.
        ranks: place -> a permutation of its units' numbers; the lowest go first.
    """

    def damage(place: str, h: Tensor) -> Tensor:
        rank = ranks[place]
        number = round(share * rank.numel())
        scale = rank.numel() / max(1, rank.numel() - number)
        return h * (scale * (rank >= number)).to(h).view(h.shape[1:])

    return damage


def largest(share: float) -> Damage:
    """Remove each row's share of the largest activations, by size."""

    def damage(place: str, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        which = flat.abs().topk(round(share * flat.shape[1]), 1).indices
        return flat.scatter(1, which, 0.0).view(h.shape)

    return damage


def gaussian(scale: float, sizes: dict[str, float], generator: torch.Generator) -> Damage:
    """Add noise of a multiple of each place's size."""

    def damage(place: str, h: Tensor) -> Tensor:
        return h + scale * sizes[place] * torch.randn(h.shape, generator=generator).to(h)

    return damage


class Recorder:
    """Notes the activations of all rows, and damages nothing.

    Attributes:
        seen: place -> parts, float64 (rows, units).
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
