"""Multi-head attention with keyed dropout."""

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
    """`torch.nn.MultiheadAttention` with attention weights that are dropped under a key.

    Use it as torch's layer. The logical index of a mask is that of the weights, (N, num_heads, L, S). In eval mode and
    without dropout it runs torch's code. With dropout it computes the weights, as torch's math path does, and stores no
    mask.

    Args:
        arguments, named: torch's arguments; `dropout` is the drop probability of a weight, in [0, 1].
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: as torch's layer.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    Reference: Vaswani et al.: Attention is all you need (NeurIPS 2017).

    >>> tokens = torch.ones(1, 3, 4)
    >>> output, weights = MultiheadAttention(4, 2, dropout=0.1, batch_first=True)(tokens, tokens, tokens)
    >>> output.shape, weights.shape
    (torch.Size([1, 3, 4]), torch.Size([1, 3, 3]))
    """

    def __init__(self, *arguments: Any, key: Key | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        ops.as_rate(self.dropout)
        self.set_key(key)

    def extra_repr(self) -> str:
        """Return the rate, which torch leaves out, and the key if there is one."""
        return ", ".join(filter(None, (f"dropout={self.dropout}", super().extra_repr())))

    def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """Compute torch's attention; in training mode drop weights."""
        if not (arguments and isinstance(arguments[0], Tensor)):
            node: tuple[Tensor, Tensor | None] | None = self.recorded(*arguments, **named)
            if node is not None:
                return node
        if not self.training or self.dropout == 0:
            return super().forward(*arguments, **named)
        with Interception(lambda call: call.with_key(self.key)):
            return super().forward(*arguments, **named)
