"""Layers of a model that runs batchwise: the same objects under classes that compute only what a group keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import nn
from puredrop._torch import transforms_active
from puredrop.compact.buffers import Buffer
from puredrop.compact.functions import LayerCall, conv, linear, put, take
from puredrop.conversion import Swapped
from puredrop.nn.keyed import HasKey
from puredrop.thinning._masks import GroupMask, GroupSite, Ranks, draw, masked
from puredrop.thinning._packed import Packed, Packing, pack, plain
from puredrop.thinning.groups import Groups

__all__ = ["CONVOLUTIONS", "DROPOUTS", "BatchwiseLayer", "Role", "swap_class"]


@dataclass
class Role:
    """Role of a layer in a chain.

    Args:
        original_class: the layer's class before the swap.
        groups: rule by which batches are split.
        sample_dim: dimension of the samples in the layer's input.
        ranks: whether every process has sub-networks of its own, or all processes have the same.
        dropout: the dropout layer after a layer with weights, which then computes only the units that are kept.
        packs: whether only layers that read packed values follow a dropout layer.
        dense: treatment of a dense input by a dropout layer: take the kept units, mask it with the masks of its groups,
            or drop the units of each sample as the original layer does.
        buffers: memory for a layer's panels, their gradient and its weight's gradient.
    """

    original_class: type[Module]
    groups: Groups
    sample_dim: int
    ranks: Ranks = "own"
    dropout: Any = None
    packs: bool = False
    dense: Literal["take", "mask", "each"] = "mask"
    buffers: tuple[Buffer, Buffer, Buffer] = field(default_factory=lambda: (Buffer(), Buffer(), Buffer()))


def swap_class(module: Module, role: Role) -> None:
    """Swap a layer's class for its batchwise version.

    The object stays, because optimizers, hooks and the user's own references hold it; only its class is exchanged.
    """
    module.__dict__["role"] = role
    module.__class__ = _BATCHWISE[role.original_class]


class BatchwiseLayer(Swapped):
    """Mixin of the batchwise classes: a role, and the way back to the original class."""

    role: Role

    @property
    def original_class(self) -> type[Module]:
        """The layer's class before the swap."""
        return self.role.original_class

    def restore_class(self) -> None:
        """Restore the layer's original class; torch's dropout layers lose the key, which they do not know."""
        original_class = self.__dict__.pop("role").original_class
        if not issubclass(original_class, HasKey):
            self.__dict__.pop("key", None)
        self.__class__ = original_class


class _WeightedLayer(BatchwiseLayer, Module):
    """Abstract base of the layers with weights."""

    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output: packed where an active dropout layer follows, dense elsewhere."""
        following = self.role.dropout
        is_thin = following is not None and following.is_active and not _needs_dense(input, self.weight)
        if not is_thin and not isinstance(input, Packed):
            return super().forward(input)  # type: ignore[no-any-return]
        kind = input.device.type
        # The compact functions know nothing of autocast, so its dtype is applied here.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        with torch.autocast(kind, enabled=False):
            return self._thin(input, following if is_thin else None, dtype)

    def _thin(self, input: Tensor, following: Any, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


def _needs_dense(*tensors: Tensor) -> bool:
    """Return whether layers run whole, under the same masks.

    They do where a compiler, a transform or a tensor of another kind would not understand packed values.
    """
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or any(type(tensor) not in (Tensor, torch.nn.Parameter, Packed) or tensor.is_meta for tensor in tensors)
    )


def _no_samples(input: Tensor, expected: str) -> str:
    return f"batchwise: input has shape {tuple(input.shape)}; expected {expected} (for one sample input.unsqueeze(0))"


class BatchwiseLinear(_WeightedLayer, torch.nn.Linear):
    """`torch.nn.Linear` that computes only the units that a group keeps."""

    def _thin(self, input: Tensor, following: Any, dtype: torch.dtype) -> Tensor:
        dim, units = self.role.sample_dim, self.out_features
        source = input.packing if isinstance(input, Packed) else None
        if not source and not dim < input.dim() - 1:
            raise RuntimeError(_no_samples(input, f"samples in dimension {dim}, units in the last"))
        dense = input if source else input.movedim(dim, 0)
        samples, inner = (source.split.samples, source.inner) if source else (len(dense), tuple(dense.shape[1:-1]))
        mask = following.mask((samples, *inner, units), input.device) if following is not None else None
        packing = _output_packing(source, mask, inner, following)
        x = plain(input) if isinstance(input, Packed) else packing.split.spread(dense).flatten(1, -2)
        output = linear(x.to(dtype), self.weight, self.bias, _layer_call(self.role, source, mask))
        return packing.unpacked(output).movedim(0, dim) if mask is None else pack(output, packing)


class _BatchwiseConv(_WeightedLayer):
    """Abstract base of the convolutions that compute only the channels that a group keeps."""

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
        samples, maps = (source.split.samples if source else len(input)), input.shape[-len(self.stride) :]
        mask = None
        if following is not None:
            mask = following.mask((samples, self.out_channels, *maps), input.device)
        packing = _output_packing(source, mask, (), following)
        x = plain(input) if isinstance(input, Packed) else packing.split.spread(input)
        geometry = (list(self.stride), list(self._padding()), list(self.dilation))
        output = conv(x.to(dtype), self.weight, self.bias, _layer_call(self.role, source, mask, geometry))
        return packing.unpacked(output) if mask is None else pack(output, packing)

    def _padding(self) -> tuple[int, ...]:
        if self.padding == "valid":
            return (0,) * len(self.kernel_size)
        if self.padding == "same":  # chains refuse even kernels, which pad more on one side
            return tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        assert not isinstance(self.padding, str)
        return self.padding


def _output_packing(source: Packing | None, mask: GroupMask | None, inner: tuple[int, ...], following: Any) -> Packing:
    """Return the packing of a layer's output; a dense output, which has no mask, is joined as its input was split."""
    if mask is None:
        assert source is not None
        return source
    return Packing(mask.split, inner, mask.kept, mask.scale, following)


def _layer_call(
    role: Role, source: Packing | None, mask: GroupMask | None, geometry: tuple[Any, ...] = ()
) -> LayerCall:
    columns, scale = (source.kept, source.scale) if source else (None, 1.0)
    return LayerCall(columns, mask.kept if mask else None, scale, role.buffers, geometry)


class BatchwiseConv1d(_BatchwiseConv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` that computes only the channels that a group keeps."""


class BatchwiseConv2d(_BatchwiseConv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` that computes only the channels that a group keeps."""


class BatchwiseConv3d(_BatchwiseConv, torch.nn.Conv3d):
    """`torch.nn.Conv3d` that computes only the channels that a group keeps."""


class _DropoutLayer(BatchwiseLayer):
    """Mixin of the dropout layers whose mask a group of samples shares."""

    p: float
    training: bool
    key: Any
    inplace: bool
    unit_dim: int = -1
    """Dimension of the units: the last one, or that of the channels."""

    @property
    def is_active(self) -> bool:
        """Return whether the layer drops anything."""
        return self.training and float(self.p) > 0

    def mask(self, sizes: Sequence[int], device: torch.device) -> GroupMask:
        """Draw the mask of one use; the layer itself need not be reached for it.

        Args:
            sizes: sizes of the tensor to drop from, samples first.
            device: device of the mask.

        Returns:
            What each group keeps: the contract's mask of the group's first sample.
        """
        shape = list(sizes)
        shape.insert(self.role.sample_dim, shape.pop(0))
        return draw(self._site(len(shape)), shape, device)

    def _site(self, rank: int) -> GroupSite:
        role = self.role
        return GroupSite(self.p, self.key, role.sample_dim, self.unit_dim % rank, role.groups, role.ranks)

    def forward(self, input: Tensor) -> Tensor:
        """Drop: packed values pass through or are put in their places, a dense input is thinned or masked."""
        if isinstance(input, Packed):
            if input.packing.site is not self:
                raise RuntimeError("batchwise: a thinned output reached another dropout layer than the next one")
            return input.dropped() if self.role.packs else self._put(input)
        if not self.is_active:
            return input
        if self.role.dense == "each":
            return super().forward(input)  # type: ignore[misc, no-any-return]
        if self.role.dense == "mask" or _needs_dense(input):
            return masked(self._site(input.dim()), input)
        return self._take(input)

    def _put(self, input: Packed) -> Tensor:
        """Put packed values in their places."""
        packing = input.packing
        return packing.unpacked(put(plain(input), packing.kept, packing.scale)).movedim(0, self.role.sample_dim)

    def _take(self, input: Tensor) -> Tensor:
        """Take the kept units from a dense input."""
        dense = input.movedim(self.role.sample_dim, 0)
        mask = self.mask(dense.shape, input.device)
        inner = tuple(dense.shape[1 : self.unit_dim])
        parts = mask.split.spread(dense)
        values = take(parts.flatten(1, 1 + len(inner)), mask.kept, 1.0)
        return pack(values, Packing(mask.split, inner, mask.kept, mask.scale, None))


class BatchwiseDropout(_DropoutLayer, nn.Dropout):
    """`puredrop.nn.Dropout` whose units a group of samples shares."""


class BatchwiseDropout1d(_DropoutLayer, nn.Dropout1d):
    """`puredrop.nn.Dropout1d` whose channels a group of samples shares."""

    unit_dim = 1


class BatchwiseDropout2d(_DropoutLayer, nn.Dropout2d):
    """`puredrop.nn.Dropout2d` whose channels a group of samples shares."""

    unit_dim = 1


class BatchwiseDropout3d(_DropoutLayer, nn.Dropout3d):
    """`puredrop.nn.Dropout3d` whose channels a group of samples shares."""

    unit_dim = 1


_ELEMENT_DROPOUTS: dict[type[Module], type[Module]] = {torch.nn.Dropout: BatchwiseDropout, nn.Dropout: BatchwiseDropout}
_CHANNEL_DROPOUTS: dict[type[Module], type[Module]] = {
    torch.nn.Dropout1d: BatchwiseDropout1d,
    torch.nn.Dropout2d: BatchwiseDropout2d,
    torch.nn.Dropout3d: BatchwiseDropout3d,
    nn.Dropout1d: BatchwiseDropout1d,
    nn.Dropout2d: BatchwiseDropout2d,
    nn.Dropout3d: BatchwiseDropout3d,
}

DROPOUTS: dict[type[Module], type[Module]] = {**_ELEMENT_DROPOUTS, **_CHANNEL_DROPOUTS}
"""Dropout class -> its batchwise version."""

CONVOLUTIONS: dict[type[Module], type[Module]] = {
    BatchwiseDropout1d: torch.nn.Conv1d,
    BatchwiseDropout2d: torch.nn.Conv2d,
    BatchwiseDropout3d: torch.nn.Conv3d,
}
"""Batchwise class that drops channels -> the convolution whose channels they are."""

_BATCHWISE: dict[type[Module], type[Module]] = {
    **DROPOUTS,
    torch.nn.Linear: BatchwiseLinear,
    torch.nn.Conv1d: BatchwiseConv1d,
    torch.nn.Conv2d: BatchwiseConv2d,
    torch.nn.Conv3d: BatchwiseConv3d,
}
