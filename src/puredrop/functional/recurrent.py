"""Recurrent networks with dropout between their layers under a key: torch's kernels, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from puredrop.functional.element import dropout
from puredrop.rng import Key, fold_in

__all__ = ["packs", "recurrent"]


def recurrent(
    kernel: Callable[..., tuple[Tensor, ...]], *arguments: Any, key: Key | Tensor | None = None
) -> tuple[Tensor, ...]:
    """What `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu` compute, with our dropout between layers.

    Torch draws these masks inside of its kernel (on a GPU inside of cuDNN, from a state of its own), so that no seed
    brings them back in another setting. Here the boundary of layer i has the key `key.fold_in(i)`.

    Args:
        kernel: torch's function.
        arguments: its arguments as torch.nn.LSTM passes them, of a padded tensor (input, hx, weights, has_biases,
            num_layers, dropout, train, bidirectional, batch_first) or of a packed one (data, batch_sizes, hx, weights,
            has_biases, num_layers, dropout, train, bidirectional).
        key: what the masks are a function of; None draws one key for each boundary from torch's generator. The
            logical index is that of what a layer returns; for a packed tensor, of its data.

    Returns:
        As torch's: the output and the states of all layers.
    """
    is_packed = packs(arguments)
    first = 2 if is_packed else 1
    states, weights, has_biases, layers, rate, training, bidirectional = arguments[first : first + 7]
    if layers == 1 or not training or rate == 0:
        return kernel(*arguments)
    inner, rest = arguments[1:first], arguments[first + 7 :]  # batch_sizes; batch_first
    are_pairs = isinstance(states, (tuple, list))  # an LSTM has a hidden and a cell state
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // layers
    output, finals = arguments[0], []
    for layer in range(layers):
        if layer:
            output = dropout(output, rate, key=_folded(key, layer))
        rows = slice(directions * layer, directions * (layer + 1))
        state: Any = [one[rows].contiguous() for one in states] if are_pairs else states[rows].contiguous()
        own = weights[per_layer * layer : per_layer * (layer + 1)]
        output, *last = kernel(output, *inner, state, own, has_biases, 1, 0.0, training, bidirectional, *rest)
        finals.append(last)
    return (output, *_joined(finals))


def packs(arguments: Sequence[Any]) -> bool:
    """Whether the arguments of a recurrent kernel are those of a packed sequence: weights stand one place later."""
    return isinstance(arguments[3], (list, tuple))


def _folded(key: Key | Tensor | None, layer: int) -> Key | Tensor | None:
    if key is None:
        return None
    return fold_in(key, layer) if isinstance(key, Tensor) else key.fold_in(layer)


def _joined(finals: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """The states of all layers, one below the other."""
    return tuple(torch.cat(states) for states in zip(*finals, strict=True))
