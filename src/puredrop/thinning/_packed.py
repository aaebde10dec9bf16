"""Packed values: the tensors that flow between compacted layers, with only the units that each group keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop._torch import without_subclass
from puredrop.compact.kept import Kept
from puredrop.thinning.groups import GroupSplit

__all__ = ["ELEMENTWISE", "Packed", "Packing", "pack", "plain"]

# Functions that treat each element by itself give the same on packed values as on dense ones.
ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    [
        *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.tanh, F.sigmoid),
        *(F.softplus, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.softsign, F.tanhshrink),
        *(torch.relu, torch.relu_, torch.tanh, torch.sigmoid, torch.selu, torch.celu, torch.nn.functional.relu_),
        *(Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.sigmoid, Tensor.tanh_, Tensor.sigmoid_),
    ]
)
# Functions that autograd, checkpointing and hooks call on any tensor.
_PLAIN = frozenset(
    [
        *(Tensor.detach, Tensor.requires_grad_, Tensor.register_hook, Tensor.retain_grad, Tensor.size, Tensor.dim),
        *(Tensor.numel, Tensor.is_floating_point, Tensor.data_ptr, Tensor.__repr__, Tensor.element_size),
        torch.autograd.backward,
    ]
)


@dataclass(frozen=True)
class Packing:
    """Description of packed values.

    Args:
        split: split of the batch into groups.
        inner: sizes of the dense tensor's dimensions between samples and units, such as tokens.
        kept: the units that each group keeps.
        scale: factor that the values still lack.
        site: the dropout layer that reads the values; None once it has been passed.
    """

    split: GroupSplit
    inner: tuple[int, ...]
    kept: Kept
    scale: float
    site: Any

    def unpacked(self, dense: Tensor) -> Tensor:
        """Rearrange (groups, rows, units, ...), with all units, to (samples, ..., units, ...)."""
        parts = dense.unflatten(1, (self.split.size, *self.inner)) if self.inner else dense
        return self.split.joined(parts)


class Packed(Tensor):
    """Values of the units that each group keeps, (groups, rows, padded units, ...).

    The class supports functions that treat each element by itself and nothing else, so that a forward which has changed
    since its chains were found ends in an error instead of wrong numbers.
    """

    packing: Packing

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Allow elementwise functions, and refuse all others."""
        first = args[0] if args else None
        is_plain = func in _PLAIN or getattr(func, "__name__", "") in ("__get__", "__set__")
        is_element = func in ELEMENTWISE and isinstance(first, Packed) and first.packing.site is not None
        if not is_plain and not is_element:
            raise RuntimeError(_unknown(getattr(func, "__name__", str(func))))
        with without_subclass():
            output = func(*args, **(kwargs or {}))
        if not isinstance(first, Packed) or not isinstance(output, Tensor):
            return output
        if output.shape != first.shape:  # a property such as x.T
            raise RuntimeError(_unknown("another view"))
        return pack(output, first.packing)

    def dropped(self) -> Packed:
        """Return the values as they are after the dropout layer; the layer that reads them scales them."""
        with without_subclass():
            return pack(self.view_as(self), replace(self.packing, site=None))


def _unknown(name: str) -> str:
    return (
        f"batchwise: {name} was called on the thinned output of a layer, which only the functions and layers that "
        "batchwise found in the forward can read; call puredrop.batchwise after the model's forward is final "
        "(puredrop.revert(model) undoes it)"
    )


def pack(values: Tensor, packing: Packing) -> Packed:
    """Return a plain tensor of packed values as a `Packed`."""
    with without_subclass():
        packed = values.as_subclass(Packed)
    packed.packing = packing
    return packed


def plain(packed: Packed) -> Tensor:
    """Return packed values as a plain tensor, for functions that know the layout."""
    with without_subclass():
        return packed.as_subclass(Tensor)
