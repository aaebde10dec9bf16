"""Units of a model removed or perturbed, their activations recorded, and the interaction among removed units."""

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
from puredrop.report.intervals import jackknife_error
from puredrop.rng import Key

__all__ = ["Perturbation", "Recorder", "Units", "add_noise", "interaction_share", "remove_largest", "remove_ranked"]

_GROUPS = 16

Perturbation = Callable[[str, Tensor], Tensor]
"""(place, activations with rows first) -> activations."""


class Units:
    """The units of a model: the inputs of all dropout, also of rate 0, or the outputs of modules that are named.

    Args:
        prepared: the model and its data.
        at: paths of modules whose outputs are the units; None for the inputs of dropout layers and functions.

    Raises:
        ValueError: if no dropout acts on the activations of rows, and no module is named.
    """

    def __init__(self, prepared: PreparedModel, at: Sequence[str] | None) -> None:
        self._prepared = prepared
        self._takes_sites = at is None
        self._perturb: Perturbation = lambda place, h: h
        # Layers of rate 0 ask for no masks, so that no intervention reaches them: hooks do.
        self._hooked = (
            [path for path, module in prepared.root.named_modules() if _is_silent(module)] if at is None else list(at)
        )
        for path in self._hooked:
            prepared.root.get_submodule(path)
        if not self._hooked and not (at is None and any(use.is_per_row for use in prepared.uses)):
            raise ValueError(
                "no dropout of the model acts on its rows' activations; name the modules whose outputs are units, as "
                "in at=['1', '3']"
            )

    @contextmanager
    def instrument(self) -> Iterator[Callable[[Batch, Perturbation], Tensor]]:
        """Take the model over: a function from rows and a perturbation to the outputs, dropout itself off."""
        with self._prepared.instrument() as runner, ExitStack() as stack:
            for path in self._hooked:
                hook = self._hook(path)
                stack.callback(runner.model.get_submodule(path).register_forward_hook(hook).remove)

            def outputs(batch: Batch, perturb: Perturbation) -> Tensor:
                self._perturb = perturb
                return runner.forward(batch, self._intervene)

            yield outputs

    def _intervene(self, use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
        return self._perturbed(use.place, input, dim) if self._takes_sites and dim is not None else input

    def _hook(self, path: str) -> Callable[[Module, Any, Any], Tensor]:
        def hook(module: Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ValueError(f"at names {path}, which returns {type(output).__name__}; expected a tensor's module")
            return self._perturbed(path, output, self._prepared.batches[0].dim)

        return hook

    def _perturbed(self, place: str, input: Tensor, dim: int) -> Tensor:
        return self._perturb(place, input.movedim(dim, 0)).movedim(0, dim)


def _is_silent(module: Module) -> bool:
    return holds_dropout(module) and rate_of(module) == 0


def remove_ranked(share: float, ranks: dict[str, Tensor]) -> Perturbation:
    """Remove the first share of units in an order of each place, and scale the others so that sums keep their size.

    Args:
        share: of the units of each place.
        ranks: place -> a permutation of its units' numbers; the lowest go first.
    """

    def perturb(place: str, h: Tensor) -> Tensor:
        rank = ranks[place]
        number = round(share * rank.numel())
        scale = rank.numel() / max(1, rank.numel() - number)
        return h * (scale * (rank >= number)).to(h).view(h.shape[1:])

    return perturb


def remove_largest(share: float) -> Perturbation:
    """Remove each row's share of the largest activations, by absolute value."""

    def perturb(place: str, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        which = flat.abs().topk(round(share * flat.shape[1]), 1).indices
        return flat.scatter(1, which, 0.0).view(h.shape)

    return perturb


def add_noise(scale: float, sizes: dict[str, float], generator: torch.Generator) -> Perturbation:
    """Add Gaussian noise, whose deviation is a multiple of each place's size."""

    def perturb(place: str, h: Tensor) -> Tensor:
        return h + scale * sizes[place] * torch.randn(h.shape, generator=generator).to(h)

    return perturb


class Recorder:
    """A perturbation that changes nothing and records the activations of all rows.

    Attributes:
        parts: place -> activations of each batch, float64 (rows, units).
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def __call__(self, place: str, h: Tensor) -> Tensor:
        self.parts.setdefault(place, []).append(h.flatten(1).detach().cpu().double())
        return h

    @property
    def activations(self) -> dict[str, Tensor]:
        """Place -> activations of all rows."""
        return {place: torch.cat(parts) for place, parts in self.parts.items()}

    def sparsity(self) -> float:
        """Return the share of activations that are 0."""
        places = self.activations.values()
        return sum(int((h == 0).sum()) for h in places) / sum(h.numel() for h in places)

    def correlation(self) -> float:
        """Return the mean |correlation| over rows between units of a place, of those that vary."""
        total, pairs = 0.0, 0
        for h in self.activations.values():
            h = h[:, h.std(0) > 1e-9]
            if h.shape[1] < 2:
                continue
            r = torch.corrcoef(h.T)
            total += float(r.abs().sum()) - len(r)
            pairs += len(r) * (len(r) - 1)
        return total / pairs if pairs else math.nan


def interaction_share(
    outputs: Callable[[Perturbation], Tensor], sizes: dict[str, int], rate: float, members: int, seed: int
) -> tuple[float, float]:
    """Return the share of the masks' variance that is interaction among units, 1 - S1, and its standard error.

    S1 is the share of the variance over masks that the best sum over units explains, Σ_j Cov(f, m_j)² / (pq) over
    Var f, summed over rows and outputs. Squared covariances are taken without the terms of one member with itself, so
    that they are unbiased also where members are fewer than units; the error is the jackknife's over 16 groups.

    Args:
        outputs: from a perturbation to the outputs of all rows, (numbers,).
        sizes: place -> number of its units.
        rate: at which units are dropped; the others are scaled.
        members: number of masks, each for all rows.
        seed: of the masks.

    Reference: Saltelli et al.: Global sensitivity analysis: the primer (2008), first-order effects.
    """
    generator = torch.Generator().manual_seed(int(Key(seed).fold_in("interaction")))
    keep = torch.rand(members, sum(sizes.values()), generator=generator) >= rate
    values = torch.stack([outputs(_dropping(mask, sizes, rate)) for mask in keep])
    centred = (keep.double() - (1 - rate)) / (rate * (1 - rate)) ** 0.5
    values = values - values.mean(0)
    pairs = (values @ values.T, centred @ centred.T)
    groups = torch.arange(members) % _GROUPS
    without = [_explained_share(*(pair[groups != g][:, groups != g] for pair in pairs)) for g in range(_GROUPS)]
    return 1 - float(_explained_share(*pairs)), float(jackknife_error(torch.stack(without)))


def _explained_share(outputs: Tensor, masks: Tensor) -> Tensor:
    """Return S1 from the products of members' outputs with each other, and of their masks, (members, members).

    The squared length of Σ_s mask_s output_s is the sum of both products' products: no tensor of the outputs' size.
    """
    count = len(outputs)
    outputs = outputs - outputs.mean(0) - outputs.mean(1, keepdim=True) + outputs.mean()
    both = outputs * masks
    explained = (both.sum() - both.trace()) / (count * (count - 1))
    return explained / (outputs.trace() / (count - 1))


def _dropping(keep: Tensor, sizes: dict[str, int], rate: float) -> Perturbation:
    parts = dict(zip(sizes, keep.split(list(sizes.values())), strict=True))

    def perturb(place: str, h: Tensor) -> Tensor:
        factor: Tensor = (parts[place] / (1 - rate)).to(h).view(h.shape[1:])
        return h * factor

    return perturb
