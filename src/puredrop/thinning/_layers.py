"""Layers of a model while it runs batchwise: the same objects under another class, with a part to play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import nn
from puredrop.compact.buffers import Memory
from puredrop.compact.functions import LayerCall, conv, linear, put, take
from puredrop.conversion import Swapped
from puredrop.nn.keyed import HasKey
from puredrop.thinning._masks import GroupSite, Mask, Ranks, draw, masked
from puredrop.thinning._packed import Packed, Packing, pack, plain
from puredrop.thinning.groups import Groups

__all__ = ["CONVOLUTIONS", "DROPOUTS", "Batchwise", "Part", "swap"]


@dataclass
class Part:
    """What a layer does in a chain.

    Args:
        was: the class it had.
        groups: how batches are split.
        sample_dim: where samples lie in what it is given.
        ranks: whether processes have sub-networks of their own, or all the same ones.
        dropout: of a layer with weights: the dropout layer behind it, for which it computes only what is kept.
        packs: of a dropout layer: whether only layers that read packed values follow.
        dense: of a dropout layer: what it does with a dense input: takes what is kept, masks it with its groups' masks,
            or drops each sample's units as ever.
        rooms: memory for a layer's panels, their gradient and its weight's gradient.
    """

    was: type[Module]
    groups: Groups
    sample_dim: int
    ranks: Ranks = "own"
    dropout: Any = None
    packs: bool = False
    dense: Literal["take", "mask", "each"] = "mask"
    rooms: tuple[Memory, Memory, Memory] = field(default_factory=lambda: (Memory(), Memory(), Memory()))


def swap(module: Module, part: Part) -> None:
    """Let a layer play a part, under one of our classes."""
    module.__dict__["part"] = part
    module.__class__ = _OURS[part.was]


class Batchwise(Swapped):
    """Mixin of the classes here: a part, and the way back."""

    part: Part

    @property
    def was(self) -> type[Module]:
        """The class it had."""
        return self.part.was

    def back(self) -> None:
        """Be the layer again that this was; torch's dropout layers know no key."""
        was = self.__dict__.pop("part").was
        if not issubclass(was, HasKey):
            self.__dict__.pop("key", None)
        self.__class__ = was

    def extra_repr(self) -> str:
        """Torch's text, and that it runs batchwise."""
        text: str = super().extra_repr()  # type: ignore[misc]
        return f"{text}, batchwise" if text else "batchwise"


class _Weighted(Batchwise, Module):
    """Abstract: a layer with weights."""

    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, dense, or packed where a dropout layer follows that drops."""
        following = self.part.dropout
        is_thin = following is not None and following.is_active and not _is_whole(input, self.weight)
        if not is_thin and not isinstance(input, Packed):
            return super().forward(input)  # type: ignore[no-any-return]
        kind = input.device.type
        # As autocast would have it, of which the functions below know nothing.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        with torch.autocast(kind, enabled=False):
            return self._thin(input, following if is_thin else None, dtype)

    def _thin(self, input: Tensor, following: Any, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


def _is_whole(*tensors: Tensor) -> bool:
    """Whether layers run whole, under the same masks.

    Where a compiler, a transform or a tensor of another kind would not know what packed values are.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or any(type(one) not in (Tensor, torch.nn.Parameter, Packed) or one.is_meta for one in tensors)
    )


def _no_samples(input: Tensor, expected: str) -> str:
    return f"batchwise: input has shape {tuple(input.shape)}; expected {expected} (for one sample input.unsqueeze(0))"


class Linear(_Weighted, torch.nn.Linear):
    """`torch.nn.Linear` on the units that are kept."""

    def _thin(self, input: Tensor, following: Any, dtype: torch.dtype) -> Tensor:
        dim, units = self.part.sample_dim, self.out_features
        source = input.packing if isinstance(input, Packed) else None
        if not source and not dim < input.dim() - 1:
            raise RuntimeError(_no_samples(input, f"samples in dimension {dim}, units in the last"))
        dense = input if source else input.movedim(dim, 0)
        samples, rest = (source.split.samples, source.rest) if source else (len(dense), tuple(dense.shape[1:-1]))
        mask = following.mask((samples, *rest, units), input.device) if following is not None else None
        packing = _packing(source, mask, rest, following)
        x = plain(input) if isinstance(input, Packed) else packing.split.spread(dense).flatten(1, -2)
        output = linear(x.to(dtype), self.weight, self.bias, _call(self.part, source, mask))
        return packing.unpacked(output).movedim(0, dim) if mask is None else pack(output, packing)


class _Conv(_Weighted):
    """Abstract: a convolution of the channels that are kept."""

    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    out_channels: int

    def _thin(self, input: Tensor, following: Any, dtype: torch.dtype) -> Tensor:
        source = input.packing if isinstance(input, Packed) else None
        if input.dim() != 2 + len(self.stride) + (source is not None):
            raise RuntimeError(_no_samples(input, "samples in dimension 0, channels in 1, maps in the others"))
        samples, inner = (source.split.samples if source else len(input)), input.shape[-len(self.stride) :]
        mask = None
        if following is not None:
            mask = following.mask((samples, self.out_channels, *inner), input.device)
        packing = _packing(source, mask, (), following)
        x = plain(input) if isinstance(input, Packed) else packing.split.spread(input)
        rule = (list(self.stride), list(self._padding()), list(self.dilation))
        output = conv(x.to(dtype), self.weight, self.bias, _call(self.part, source, mask, rule))
        return packing.unpacked(output) if mask is None else pack(output, packing)

    def _padding(self) -> tuple[int, ...]:
        if self.padding == "valid":
            return (0,) * len(self.kernel_size)
        if self.padding == "same":  # even kernels, which pad more on one side, are refused before
            return tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        assert not isinstance(self.padding, str)
        return self.padding


def _packing(source: Packing | None, mask: Mask | None, rest: tuple[int, ...], following: Any) -> Packing:
    """Of an output; of one that is dense, which has no mask, only how it is put together counts."""
    if mask is None:
        assert source is not None
        return source
    return Packing(mask.split, rest, mask.kept, mask.scale, following)


def _call(part: Part, source: Packing | None, mask: Mask | None, rule: tuple[Any, ...] = ()) -> LayerCall:
    columns, scale = (source.kept, source.scale) if source else (None, 1.0)
    return LayerCall(columns, mask.kept if mask else None, scale, part.rooms, rule)


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` on the channels that are kept."""


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` on the channels that are kept."""


class Conv3d(_Conv, torch.nn.Conv3d):
    """`torch.nn.Conv3d` on the channels that are kept."""


class _Dropping(Batchwise):
    """Mixin: a dropout layer whose mask each group of samples shares."""

    p: float
    training: bool
    key: Any
    inplace: bool
    unit_dim: int = -1
    """Where the units lie: the last dimension, or the channels'."""

    @property
    def is_active(self) -> bool:
        """Whether it drops anything."""
        return self.training and float(self.p) > 0

    def mask(self, sizes: Sequence[int], device: torch.device) -> Mask:
        """The mask of one use; the layer itself need not be reached for it.

        Args:
            sizes: of what is dropped from, samples first.
            device: where.

        Returns:
            What each group keeps: as the contract has it for the group's first sample.
        """
        shape = list(sizes)
        shape.insert(self.part.sample_dim, shape.pop(0))
        return draw(self._site(len(shape)), shape, device)

    def _site(self, rank: int) -> GroupSite:
        part = self.part
        return GroupSite(self.p, self.key, part.sample_dim, self.unit_dim % rank, part.groups, part.ranks)

    def forward(self, input: Tensor) -> Tensor:
        """Drop: packed values pass or are put in their places, a dense input is taken apart or masked."""
        if isinstance(input, Packed):
            if input.packing.site is not self:
                raise RuntimeError("batchwise: a thinned output reached another dropout layer than the one behind it")
            return input.dropped() if self.part.packs else self._put(input)
        if not self.is_active:
            return input
        if self.part.dense == "each":
            return super().forward(input)  # type: ignore[misc, no-any-return]
        if self.part.dense == "mask" or _is_whole(input):
            return masked(self._site(input.dim()), input)
        return self._take(input)

    def _put(self, input: Packed) -> Tensor:
        packing = input.packing
        return packing.unpacked(put(plain(input), packing.kept, packing.scale)).movedim(0, self.part.sample_dim)

    def _take(self, input: Tensor) -> Tensor:
        """Of a dense input, what is kept."""
        dense = input.movedim(self.part.sample_dim, 0)
        mask = self.mask(dense.shape, input.device)
        rest = tuple(dense.shape[1 : self.unit_dim])
        parts = mask.split.spread(dense)
        values = take(parts.flatten(1, 1 + len(rest)), mask.kept, 1.0)
        return pack(values, Packing(mask.split, rest, mask.kept, mask.scale, None))


class Dropout(_Dropping, nn.Dropout):
    """`puredrop.nn.Dropout` of units that a group of samples shares."""


class Dropout1d(_Dropping, nn.Dropout1d):
    """`puredrop.nn.Dropout1d` of channels that a group of samples shares."""

    unit_dim = 1


class Dropout2d(_Dropping, nn.Dropout2d):
    """`puredrop.nn.Dropout2d` of channels that a group of samples shares."""

    unit_dim = 1


class Dropout3d(_Dropping, nn.Dropout3d):
    """`puredrop.nn.Dropout3d` of channels that a group of samples shares."""

    unit_dim = 1


_CHANNELS = {Dropout1d: Conv1d, Dropout2d: Conv2d, Dropout3d: Conv3d}

DROPOUTS: dict[type[Module], type[Module]] = {
    getattr(library, ours.__name__): ours for ours in (Dropout, *_CHANNELS) for library in (torch.nn, nn)
}
"""Dropout layers that can run batchwise -> ours."""

CONVOLUTIONS: dict[type[Module], type[Module]] = {
    ours: getattr(torch.nn, conv.__name__) for ours, conv in _CHANNELS.items()
}
"""Of our layers that drop channels: whose channels."""

_OURS = {
    **DROPOUTS,
    **{getattr(torch.nn, ours.__name__): ours for ours in (Linear, *_CHANNELS.values())},
}
