"""Multi-head attention whose dropout is ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puredrop import ops
from puredrop.functional.interception import Interception
from puredrop.nn.keyed import HasKey
from puredrop.rng import Key

__all__ = ["MultiheadAttention"]


class MultiheadAttention(HasKey, torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`, the masks of whose weights are a pure function of a key.

    The logical index of a mask is that of the weights, (N, num_heads, L, S). Nothing changes in eval mode or without
    dropout. With it the weights are computed, as in torch's math path, and their mask is not kept.

    Args:
        arguments, named: as torch's.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: as torch's.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    Reference: Vaswani et al.: Attention is all you need (NeurIPS 2017).
    """

    def __init__(self, *arguments: Any, key: Key | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        ops.as_rate(self.dropout)
        self.set_key(key)

    def extra_repr(self) -> str:
        """The rate, which torch leaves out, and the key if there is one."""
        return ", ".join(filter(None, (f"dropout={self.dropout}", super().extra_repr())))

    def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """As torch's."""
        if not self.training or self.dropout == 0:
            return super().forward(*arguments, **named)
        with Interception(lambda call: call.ours(self.key)):
            return super().forward(*arguments, **named)
