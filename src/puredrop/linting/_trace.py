"""A watched forward that also follows where tensors come from, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakIdKeyDictionary

from puredrop.inspection.watch import Watch

__all__ = ["Norm", "Trace"]

_CONVOLUTIONS = {getattr(F, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)}


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from.

    Args:
        site: the dropout it left last, None where something mixed it with other tensors since.
        layers: linear and convolution layers since.
        is_map: whether it is a convolution's map.
    """

    site: str | None = None
    layers: int = 0
    is_map: bool = False


@dataclass(frozen=True)
class Norm:
    """What a BatchNorm was given.

    Args:
        site: the dropout it left last, at most one layer before, or None.
        layers: how many lie between.
        mean, variance: by channel.
    """

    site: str | None
    layers: int
    mean: Tensor
    variance: Tensor


class Trace(Watch):
    """A watch that follows tensors.

    Attributes:
        norms: what BatchNorms were given, by their paths.
        maps: sites that drop single elements of convolutions' maps, and the maps' sizes.
    """

    def __init__(self, model: Module) -> None:
        super().__init__(model)
        self.norms: dict[str, Norm] = {}
        self.maps: dict[str, tuple[int, ...]] = {}
        self._origins: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook."""
        output = super().__torch_function__(func, types, args, kwargs)
        tensors = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        if not tensors or not isinstance(output, Tensor):
            return output
        origin = self._origins.get(tensors[0], _Origin())
        if func is F.batch_norm:
            self._at_norm(tensors[0], origin)
            origin = replace(origin, site=None)
        elif self.dropped is not None:
            name = getattr(func, "__name__", "")
            if (
                origin.is_map
                and name in ("dropout", "dropout.default")
                and output.dim() > 2
                and output[0, 0].numel() > 1
            ):
                self.maps[self.dropped] = tuple(output.shape)
            origin = replace(origin, site=self.dropped, layers=0)
        elif func is F.linear or func in _CONVOLUTIONS:
            origin = replace(origin, layers=origin.layers + 1, is_map=func is not F.linear)
        elif len(tensors) > 1:
            origin = _Origin()
        elif output.dim() != tensors[0].dim():
            origin = replace(origin, is_map=False)
        if origin != _Origin():
            self._origins[output] = origin
        return output

    def _at_norm(self, input: Tensor, origin: _Origin) -> None:
        rows = input.detach().double().transpose(0, 1).flatten(1)
        site = origin.site if origin.layers <= 1 else None
        self.norms[self.path] = Norm(site, origin.layers, rows.mean(1), rows.var(1, unbiased=False))

    def origin_of_output(self) -> list[_Origin]:
        """Where what the forward returned comes from."""
        found: list[_Origin] = []

        def visit(value: Any) -> None:
            if isinstance(value, Tensor):
                found.append(self._origins.get(value, _Origin()))
            elif isinstance(value, (tuple, list)):
                for one in value:
                    visit(one)
            elif hasattr(value, "values"):
                visit(list(value.values()))

        visit(self.output)
        return found
