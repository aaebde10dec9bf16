"""Recurrent networks with keyed dropout between their layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puredrop import ops
from puredrop.functional.interception import Interception
from puredrop.nn.keyed import HasKey
from puredrop.rng import Key

__all__ = ["GRU", "LSTM", "RNN"]


class _Recurrent(HasKey, torch.nn.RNNBase):
    """Abstract: torch's recurrent network, run one layer at a time where it drops."""

    def __init__(self, *arguments: Any, key: Key | None = None, **named: Any) -> None:
        ops.as_rate(named.get("dropout", 0.0))  # torch lets NaN through
        super().__init__(*arguments, **named)
        ops.as_rate(self.dropout)  # of a positional argument
        self.set_key(key)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run torch's network; in training mode drop between its layers."""
        if not (arguments and isinstance(arguments[0], Tensor)) and (
            (node := self.recorded(*arguments, **named)) is not None
        ):
            return node
        if not self.training or self.dropout == 0 or self.num_layers == 1:
            return super().forward(*arguments, **named)
        with Interception(lambda call: call.with_key(self.key)):
            return super().forward(*arguments, **named)


class LSTM(_Recurrent, torch.nn.LSTM):
    """`torch.nn.LSTM` with dropout between its layers that a key determines.

    Use it where a run must be reproducible: torch draws these masks inside its kernel, and on a GPU no seed brings them
    back in another setting.

    Args:
        arguments, named: torch's arguments; `dropout` is the drop probability between layers, in [0, 1].
        key: the mask before layer i (i from 1 on) has the key `key.fold_in(i)`; None draws a key per mask from torch's
            default generator. The logical index is that of a layer's output; for a packed sequence, of its data.

    Shape: as torch's layer.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    Reference: Zaremba, Sutskever and Vinyals: Recurrent neural network regularization (2014).

    >>> output, state = LSTM(3, 4, num_layers=2, dropout=0.5)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """


class GRU(_Recurrent, torch.nn.GRU):
    """`torch.nn.GRU` with dropout between its layers that a key determines.

    Use it where a run must be reproducible, as `LSTM`.

    Args:
        arguments, named: torch's arguments; `dropout` is the drop probability between layers, in [0, 1].
        key: the key of every mask, folded for each layer as in `LSTM`.

    Shape: as torch's layer.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    >>> output, state = GRU(3, 4, num_layers=2, dropout=0.5)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """


class RNN(_Recurrent, torch.nn.RNN):
    """`torch.nn.RNN` whose dropout between layers is drawn under a key.

    Use it where a run must be reproducible, as `LSTM`.

    Args:
        arguments, named: torch's arguments; `dropout` is the drop probability between layers, in [0, 1].
        key: the key of every mask, folded for each layer as in `LSTM`.

    Shape: as torch's layer.

    Raises:
        TypeError, ValueError: if dropout is no rate in [0, 1], or the key is no `Key`.

    >>> output, state = RNN(3, 4, num_layers=2, dropout=0.5)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """
