"""The built-in network: Linear-ReLU-Dropout-...-Linear, one copy per seed, run as batched matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from puredrop import functional
from puredrop.compact.functions import LayerCall, linear, take
from puredrop.compact.kept import Kept
from puredrop.functional import keep_mask
from puredrop.ops import Window
from puredrop.rng import Key
from puredrop.thinning import GroupSplit

__all__ = ["Model", "Network", "Parameters"]

Parameters = dict[str, Tensor]


class Model(Protocol):
    """One copy of a network per seed, parameters stacked along dimension 0."""

    @property
    def splits(self) -> bool:
        """Return whether some of the seeds can run without the others and have the same masks as among them."""

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Return fresh parameters, a pure function of each seed."""

    def trainable(self, parameters: Parameters) -> Parameters:
        """Return the parameters that are trained."""

    def module(self, parameters: Parameters, copy: int, *, dropout: bool = True) -> Module:
        """Return one copy by itself, in eval mode; without dropout its dropout layers have rate 0."""

    def outputs(
        self,
        parameters: Parameters,
        x: Tensor,
        key: Key | None = None,
        *,
        one_mask: bool = False,
        training: bool = False,
        first: int = 0,
        groups: int | None = None,
    ) -> Tensor:
        """Run every copy on its own rows: (seeds, rows, features) to (seeds, rows, outputs)."""


@dataclass(frozen=True)
class Network:
    """The shape of a multilayer perceptron and the places where it drops.

    Parameters are named as in the equivalent `nn.Sequential(Linear, ReLU, Dropout, Linear, ...)`, with one leading
    dimension for the seeds, so that `{name: value[seed] for ...}` is that model's state dict.

    Args:
        sizes: features, hidden widths, outputs.
        rates: drop probability after each hidden layer.
        input_rate: drop probability of the features.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    input_rate: float = 0.0
    splits = True

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the names of the Linear layers."""
        return tuple(str(3 * i) for i in range(len(self.sizes) - 1))

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Draw the initial values of torch.nn.Linear, a pure function of each seed.

        Args:
            seeds: one number per copy.

        Returns:
            Weights (seeds, out, in) and biases (seeds, out), float32.
        """
        parameters = {}
        for name, fan_in, fan_out in zip(self.layers, self.sizes, self.sizes[1:], strict=False):
            bound = 1 / math.sqrt(fan_in)
            for kind, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                draws = [_uniform(Key(seed).fold_in("init").fold_in(f"{name}.{kind}"), shape) for seed in seeds]
                parameters[f"{name}.{kind}"] = (2 * torch.stack(draws) - 1) * bound
        return parameters

    def trainable(self, parameters: Parameters) -> Parameters:
        """Return all parameters."""
        return parameters

    def module(self, parameters: Parameters, copy: int, *, dropout: bool = True) -> nn.Module:
        """Return one copy as an nn.Sequential, in eval mode; without dropout its dropout layers have rate 0."""
        model = nn.Sequential()
        if self.input_rate:
            model.add_module("input", nn.Dropout(self.input_rate if dropout else 0.0))
        for i, name in enumerate(self.layers):
            model.add_module(name, nn.Linear(self.sizes[i], self.sizes[i + 1]))
            if i < len(self.rates):
                model.add_module(str(3 * i + 1), nn.ReLU())
                model.add_module(str(3 * i + 2), nn.Dropout(self.rates[i] if dropout else 0.0))
        model.load_state_dict({name: value[copy] for name, value in parameters.items()})
        return model.eval().to(next(iter(parameters.values())).dtype)

    def outputs(
        self,
        parameters: Parameters,
        x: Tensor,
        key: Key | None = None,
        *,
        one_mask: bool = False,
        training: bool = False,
        first: int = 0,
        groups: int | None = None,
    ) -> Tensor:
        """Run every copy on its own rows.

        Args:
            parameters: as `initial` gives them.
            x: float32 (seeds, rows, features).
            key: key of the masks, in which the seed is the outermost dimension; None for the one deterministic pass by
                weight scaling.
            one_mask: share each copy's mask over its rows: one member of the ensemble instead of one per row.
            training: without effect, since nothing but dropout differs in training.
            first: number of seeds before these.
            groups: number of groups of each copy's rows that share their masks; None where each row has its own.

        Returns:
            float32 (seeds, rows, outputs).
        """
        if key is not None and groups is not None:
            return self._thinned(parameters, x, key, first, groups)
        shared_dims = (1,) if one_mask else ()

        def drop(h: Tensor, rate: float, site: str) -> Tensor:
            if key is None:
                return h
            window = None if first == 0 else Window((first + len(h), *h.shape[1:]), (first, 0, 0))
            return functional.dropout(h, rate, key=key.fold_in(site), shared_dims=shared_dims, window=window)

        return self.forward(parameters, x, drop)

    def masks(self, steps: Iterable[int], seeds: int, copy: int, rows: int) -> Iterator[dict[str, Tensor]]:
        """Draw again, from keys alone, what one copy kept at steps of its training: site -> bool (rows, units).

        Args:
            steps: numbers of steps.
            seeds: number of copies that were trained together.
            copy: number of the copy.
            rows: number of rows of a batch.
        """
        rates = {"input": self.input_rate, **{str(3 * i + 2): rate for i, rate in enumerate(self.rates)}}
        units = dict(zip(rates, self.sizes, strict=False))
        for step in steps:
            key = Key(0).fold_in("compare").fold_in(step)
            yield {
                site: keep_mask((1, rows, units[site]), rate, key.fold_in(site),
                                window=Window((seeds, rows, units[site]), (copy, 0, 0)))[0]
                for site, rate in rates.items() if rate
            }  # fmt: skip

    def forward(self, parameters: Parameters, x: Tensor, drop: Callable[[Tensor, float, str], Tensor]) -> Tensor:
        """Run every copy on its own rows; `drop` maps (activations, rate, site) to activations."""
        h = drop(x, self.input_rate, "input")
        for i, name in enumerate(self.layers):
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
            if i < len(self.rates):
                h = drop(F.relu(h), self.rates[i], f"{3 * i + 2}")
        return h

    def _thinned(self, parameters: Parameters, x: Tensor, key: Key, first: int, groups: int) -> Tensor:
        """Compute `outputs` on kept units only: every group of every copy is one group of compacted layers."""
        seeds, rows, _ = x.shape
        split = GroupSplit(rows, min(groups, rows))  # a group is one row at least
        starts = torch.tensor(split.starts, device=x.device)

        def mask(rate: float, units: int, site: str) -> Tensor:
            window = Window((first + seeds, rows, units), (first, 0, 0))
            shape = (seeds, split.groups, units)
            named = {"window": window, "sample_ids": starts, "sample_dim": 1, "device": x.device}
            return keep_mask(shape, rate, key.fold_in(site), **named).flatten(0, 1)  # type: ignore[arg-type]

        def kept_rows(keep: Tensor) -> Kept:
            """Return the kept units as rows of all copies' weights, one copy's weights below the other's."""
            blocks = torch.eye(seeds, device=x.device).bool().repeat_interleave(split.groups, 0)
            return Kept.from_mask((blocks.unsqueeze(2) & keep.unsqueeze(1)).flatten(1))

        h = split.spread(x.transpose(0, 1)).permute(2, 0, 1, 3).flatten(0, 1)
        columns, scale = None, 1.0
        if self.input_rate:
            columns, scale = Kept.from_mask(mask(self.input_rate, x.shape[2], "input")), 1 / (1 - self.input_rate)
            h = take(h, columns, 1.0)
        for i, name in enumerate(self.layers):
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            rate = self.rates[i] if i < len(self.rates) else 0.0
            keep = mask(rate, weight.shape[1], f"{3 * i + 2}")
            h = linear(h, weight.flatten(0, 1), bias.flatten(), LayerCall(columns, kept_rows(keep), scale))
            if i < len(self.rates):
                h, columns, scale = F.relu(h), Kept.from_mask(keep), 1 / (1 - rate)
        parts = h[..., : self.sizes[-1]].unflatten(0, (seeds, split.groups)).permute(1, 2, 0, 3)
        return split.joined(parts).transpose(0, 1)


def _uniform(key: Key, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(int(key)))
