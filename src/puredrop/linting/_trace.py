"""Watch of a forward that also records the origin of each tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakIdKeyDictionary

from puredrop.inspection.callers import calling_frames
from puredrop.inspection.watch import Watch
from puredrop.linting._answer import answer
from puredrop.linting._discarded import Caller, Results

__all__ = ["Norm", "Trace"]

_CONVOLUTIONS = {getattr(F, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)}
_MOST_CALLERS = 6
"""The most functions that may hand a result on to each other."""


@dataclass(frozen=True)
class _Origin:
    """Origin of a tensor.

    Args:
        site: path of the last dropout that the tensor passed; None if other tensors were mixed in since.
        layers: number of linear and convolution layers since that dropout.
        is_map: whether the tensor is the output of a convolution.
    """

    site: str | None = None
    layers: int = 0
    is_map: bool = False


@dataclass(frozen=True)
class Norm:
    """Input of a BatchNorm layer.

    Args:
        site: path of the last dropout, if at most one layer lies between; else None.
        layers: number of layers between the dropout and the BatchNorm.
        mean, variance: moments of the input, (channels,).
    """

    site: str | None
    layers: int
    mean: Tensor
    variance: Tensor


class Trace(Watch):
    """Watch that records the origin of each tensor.

    Attributes:
        norms: path of each BatchNorm layer -> its input.
        maps: path of each site that drops single elements of a convolution's output -> the output's shape.
    """

    def __init__(self, model: Module) -> None:
        super().__init__(model)
        self.norms: dict[str, Norm] = {}
        self.maps: dict[str, tuple[int, ...]] = {}
        self._origins: Any = WeakIdKeyDictionary()
        self._results = Results()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and record the origin of its output."""
        self._results.use((args, kwargs))
        output = super().__torch_function__(func, types, args, kwargs)
        self._note_result(output, args)
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
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

    def enter(self, path: str, is_site: bool, module: Module, inputs: tuple[Any, ...]) -> None:
        """Push a module's frame, and note who waits for the result of a dropout module."""
        super().enter(path, is_site, module, inputs)
        self._results.use(inputs)
        if is_site:
            self._results.callers[path] = _callers()

    def _note_result(self, output: Any, args: tuple[Any, ...]) -> None:
        """Note a new tensor that a dropout has returned, or that was made inside of a dropout module."""
        site = self._frames[-1].site
        if (site is None and self.dropped is None) or not isinstance(output, Tensor):
            return
        if not any(output is value for value in args):
            path = self.path if site is not None else str(self.dropped)
            callers = _callers() if site is None else self._results.callers.get(path, ())
            self._results.add(output, path, callers)

    def thrown_away(self) -> list[str]:
        """Return the paths of the sites whose results were thrown away after they had dropped something."""
        dropping = {call.path for call in self.calls.values() if call.drops}
        return [path for path in self._results.thrown_away() if path in dropping]

    def origin_of_answer(self) -> _Origin:
        """Return the origin of the tensor that the model answers with."""
        found = answer(self.output)
        return _Origin() if found is None else self._origins.get(found, _Origin())


def _callers() -> tuple[Caller, ...]:
    frames = itertools.islice(calling_frames(), _MOST_CALLERS)
    return tuple(Caller(frame.f_code, frame.f_lasti) for frame in frames)
