"""Members on compacted weights: of each layer only what a member keeps, all members of a chunk side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import nn
from puredrop.batchwise import Call, Chain, Kept, conv, find, gather, linear, shape_of
from puredrop.ensemble._source import Moment, Use

__all__ = ["Compact", "Link", "links"]

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Link(NamedTuple):
    """A site between layers with weights.

    Args:
        before: path of the layer whose output, through elementwise functions, it drops from; None for another.
        after: paths of the layers that alone read what it leaves.
    """

    before: str | None
    after: tuple[str, ...]


class _Packed(NamedTuple):
    """What stands for a site's output: the units that each member keeps, not scaled yet."""

    kept: Kept
    scale: float


def links(root: Module) -> dict[str, Link]:
    """Path -> link of the sites whose neighbours are known: each used once, its readers nobody else's."""
    chains = find(root).chains
    readers = [path for chain in chains for path in chain.after]
    paths = [chain.path for chain in chains]

    def is_simple(chain: Chain) -> bool:
        return (
            bool(chain.after)
            and paths.count(chain.path) == 1
            and all(readers.count(path) == 1 for path in chain.after)
            and chain.sample_dim == 0
        )

    found = {chain.path: chain for chain in chains if is_simple(chain)}
    return {path: Link(one.before_path or None, tuple(one.after)) for path, one in found.items()}


class Compact:
    """Layers of a model that is driven, told to run on what members keep; outside of vmap they run as ever.

    Args:
        chain: path -> link, of the sites.
        moment: gives the moment that is open.
    """

    def __init__(self, chain: dict[str, Link], moment: Callable[[], Moment]) -> None:
        self._links = chain
        self._moment = moment
        self._pending: dict[str, _Packed] = {}
        self._packed: dict[str, _Packed] = {}

    def begin(self) -> None:
        """Forget what an earlier forward left."""
        self._pending.clear()
        self._packed.clear()

    def install(self, stack: ExitStack, model: Module, override: Callable[[ExitStack, Module, Any], None]) -> None:
        """Give sites and their readers another forward."""
        following = {link.before: path for path, link in self._links.items() if link.before}
        for path, link in self._links.items():
            override(stack, model.get_submodule(path), self._site(path))
            for reader in link.after:
                override(stack, model.get_submodule(reader), self._reader(path, following.get(reader), model))

    def _site(self, path: str) -> Callable[[Any, Tensor], Tensor]:
        def drop(layer: Any, input: Tensor) -> Tensor:
            if path in self._pending:
                self._packed[path] = self._pending.pop(path)
                return input
            unit = 1 if isinstance(layer, _CHANNELS) else -1
            self._packed.pop(path, None)
            moment = self._moment()
            if not self._fits(layer, input, unit):
                output: Tensor = type(layer).forward(layer, input)
                return output
            self._packed[path] = packed = self._draw(path, layer, input.shape[unit], input, unit)
            taken: Tensor = _Take.apply(input, moment.member, packed.kept)
            return taken

        return drop

    def _fits(self, layer: Any, input: Tensor, unit: int) -> bool:
        """Whether a member has one decision for each unit, so that a layer without the others is the same."""
        return (
            torch._C._are_functorch_transforms_active()
            and self._moment().first is None
            and 0 < float(layer.p) < 1
            and not getattr(layer, "shared_dims", ())
            and input.dim() == (2 if unit == -1 else 2 + 1 + _CHANNELS.index(type(layer)))
            and input.dtype in (torch.float32, torch.float64)
        )

    def _draw(self, path: str, layer: Any, units: int, input: Tensor, unit: int) -> _Packed:
        moment, p = self._moment(), float(layer.p)
        use = Use(path, moment.begin(path), p, (1, units, *[1] * (0 if unit == -1 else input.dim() - 2)))
        moment.uses.append(use)
        keep = moment.keep(use, input.device)
        return _Packed(Kept.of(keep.flatten(1)), 1 / (1 - p))

    def _reader(self, site: str, following: str | None, model: Module) -> Callable[[Any, Tensor], Tensor]:
        after = model.get_submodule(following) if following else None

        def read(layer: Any, input: Tensor) -> Tensor:
            source = self._packed.get(site)
            if source is None:
                output: Tensor = type(layer).forward(layer, input)
                return output
            moment, rows = self._moment(), None
            unit = 1 if isinstance(after, _CHANNELS) else -1
            if following is not None and after is not None and self._fits(after, input, unit):
                thinned = self._draw(following, after, layer.weight.shape[0], input, unit)
                self._pending[following] = thinned
                rows = thinned.kept
            rule = (list(layer.stride), list(_padding(layer)), list(layer.dilation)) if input.dim() > 2 else ()
            call = Call(source.kept, rows, source.scale, None, rule)
            thin: Tensor = _Thin.apply(input, layer.weight, layer.bias, moment.member, call)
            return thin

        return read


def _padding(layer: Any) -> tuple[int, ...]:
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    padding: tuple[int, ...] = layer.padding
    return padding


class _UnderVmap(torch.autograd.Function):
    """Abstract: a function of all members at once; predictions have no gradient."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise NotImplementedError  # under vmap alone

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""


class _Take(_UnderVmap):
    """(samples, units, ...) -> each member's (samples, room for what it keeps, ...)."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, member: Tensor, kept: Kept
    ) -> tuple[Tensor, int]:
        is_common = in_dims[0] is None
        rows = input.shape[0] if is_common else input.movedim(in_dims[0] or 0, 0).shape[1]
        flat = input if is_common else input.movedim(in_dims[0] or 0, 0).flatten(0, 1)
        flat = flat.contiguous()
        room = torch.empty(shape_of(flat, info.batch_size, rows, kept), dtype=flat.dtype, device=flat.device)
        return gather(flat, rows, kept, 1.0, room, step=0 if is_common else rows), 0


class _Thin(_UnderVmap):
    """A Linear layer or a convolution of each member's units."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        member: Tensor,
        call: Call,
    ) -> tuple[Tensor, int]:
        apply = conv if call.rule else linear
        return apply(input.movedim(in_dims[0] or 0, 0).contiguous(), weight, bias, call), 0
