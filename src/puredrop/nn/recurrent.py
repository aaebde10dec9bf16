"""Recurrent networks whose dropout between layers is ours, and so can be repeated."""

from __future__ import annotations

from typing import Any

import torch

from puredrop import ops
from puredrop.functional.interception import Interception
from puredrop.nn.keyed import HasKey
from puredrop.rng import Key

__all__ = ["GRU", "LSTM", "RNN"]


class _Recurrent(HasKey, torch.nn.RNNBase):
    """Abstract: torch's network, run one layer at a time where it drops."""

    def __init__(self, *arguments: Any, key: Key | None = None, **named: Any) -> None:
        ops.as_rate(named.get("dropout", 0.0))  # torch lets NaN through
        super().__init__(*arguments, **named)
        self.set_key(key)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As torch's."""
        if not self.training or self.dropout == 0 or self.num_layers == 1:
            return super().forward(*arguments, **named)
        with Interception(lambda call: call.ours(self.key)):
            return super().forward(*arguments, **named)


class LSTM(_Recurrent, torch.nn.LSTM):
    """`torch.nn.LSTM`, the dropout between whose layers is a pure function of a key; torch's cannot be repeated.

    Args:
        arguments, named: as torch's.
        key: the mask below layer i (i from 1 on) has the key `key.fold_in(i)`; None draws one key per mask from
            torch's default generator. The logical index is that of a layer's output; for a packed sequence of its data.

    Shape: as torch's.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    Reference: Zaremba, Sutskever and Vinyals: Recurrent neural network regularization (2014).
    """


class GRU(_Recurrent, torch.nn.GRU):
    """`torch.nn.GRU`, the dropout between whose layers is a pure function of a key.

    Args:
        arguments, named: as torch's.
        key: as in `LSTM`.

    Shape: as torch's.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.
    """


class RNN(_Recurrent, torch.nn.RNN):
    """`torch.nn.RNN`, the dropout between whose layers is a pure function of a key.

    Args:
        arguments, named: as torch's.
        key: as in `LSTM`.

    Shape: as torch's.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.
    """
