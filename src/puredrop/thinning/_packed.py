"""What flows between compacted layers: of each group's samples only the units that the group keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop.compact.kept import Kept
from puredrop.thinning.groups import GroupSplit

__all__ = ["ELEMENTWISE", "Packed", "Packing", "pack", "plain"]

# One of these on packed values is the same on what they stand for: each element by itself.
ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    [
        *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.tanh, F.sigmoid),
        *(F.softplus, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.softsign, F.tanhshrink),
        *(torch.relu, torch.relu_, torch.tanh, torch.sigmoid, torch.selu, torch.celu, torch.nn.functional.relu_),
        *(Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.sigmoid, Tensor.tanh_, Tensor.sigmoid_),
    ]
)
# What autograd, checkpointing and hooks ask of any tensor.
_PLAIN = frozenset(
    [
        *(Tensor.detach, Tensor.requires_grad_, Tensor.register_hook, Tensor.retain_grad, Tensor.size, Tensor.dim),
        *(Tensor.numel, Tensor.is_floating_point, Tensor.data_ptr, Tensor.__repr__, Tensor.element_size),
        torch.autograd.backward,
    ]
)


@dataclass(frozen=True)
class Packing:
    """What packed values stand for.

    Args:
        split: how the batch is in groups.
        rest: sizes of the dense tensor's dimensions between samples and units: tokens.
        kept: which units each group keeps.
        scale: what the values must be multiplied by.
        site: the dropout layer, before it has dropped; None after it.
    """

    split: GroupSplit
    rest: tuple[int, ...]
    kept: Kept
    scale: float
    site: Any

    def unpacked(self, dense: Tensor) -> Tensor:
        """(groups, rows, units, ...) as (samples, ..., units, ...), of all units."""
        parts = dense.unflatten(1, (self.split.size, *self.rest)) if self.rest else dense
        return self.split.joined(parts)


class Packed(Tensor):
    """(groups, rows, room for the units that a group keeps, ...): what flows between compacted layers.

    It knows what is done element by element, and nothing else: so a forward that has changed since it was looked at
    ends in an error, not in wrong numbers.
    """

    packing: Packing

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook."""
        first = args[0] if args else None
        is_plain = func in _PLAIN or getattr(func, "__name__", "") in ("__get__", "__set__")
        is_element = func in ELEMENTWISE and isinstance(first, Packed) and first.packing.site is not None
        if not is_plain and not is_element:
            raise RuntimeError(_unknown(getattr(func, "__name__", str(func))))
        with torch._C.DisableTorchFunctionSubclass():
            output = func(*args, **(kwargs or {}))
        if not isinstance(first, Packed) or not isinstance(output, Tensor):
            return output
        if output.shape != first.shape:  # a property, such as x.T
            raise RuntimeError(_unknown("another view"))
        return pack(output, first.packing)

    def dropped(self) -> Packed:
        """The same once the dropout layer has been passed: what reads it scales it."""
        with torch._C.DisableTorchFunctionSubclass():
            return pack(self.view_as(self), replace(self.packing, site=None))


def _unknown(name: str) -> str:
    return (
        f"batchwise: {name} was called on the thinned output of a layer, which only the functions and layers that were "
        "there when the model was looked at can read; call puredrop.batchwise after the model's forward is final "
        "(report.revert() undoes it)"
    )


def pack(values: Tensor, packing: Packing) -> Packed:
    """A plain tensor of packed values as what it is."""
    with torch._C.DisableTorchFunctionSubclass():
        packed = values.as_subclass(Packed)
    packed.packing = packing
    return packed


def plain(packed: Packed) -> Tensor:
    """The values as a plain tensor, for functions that know the layout."""
    with torch._C.DisableTorchFunctionSubclass():
        return packed.as_subclass(Tensor)
