"""Recurrent networks with keyed dropout between their layers: torch's kernels, called one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from puredrop.functional.element import dropout
from puredrop.ops import SiteKeySource
from puredrop.rng import Key, fold_in

__all__ = ["packs", "recurrent"]


def recurrent(
    kernel: Callable[..., tuple[Tensor, ...]], *arguments: Any, key: Key | Tensor | SiteKeySource | None = None
) -> tuple[Tensor, ...]:
    """Run torch's recurrent kernel one layer at a time, with keyed dropout between the layers.

    Torch draws these masks inside its kernel (on a GPU inside cuDNN, from cuDNN's state), so that no seed reproduces
    them in another setting. Here the mask before layer i has the key `key.fold_in(i)`.

    Args:
        kernel: `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`.
        arguments: the kernel's arguments as torch.nn.LSTM passes them: for a padded tensor (input, hx, weights,
            has_biases, num_layers, dropout, train, bidirectional, batch_first), for a packed one (data, batch_sizes,
            hx, weights, has_biases, num_layers, dropout, train, bidirectional).
        key: the key that determines the masks. None draws a key for each boundary from torch's generator. The logical
            index is that of a layer's output; for a packed tensor, of its data.

    Returns:
        The output and the states of all layers, as torch returns them.
    """
    is_packed = packs(arguments)
    first = 2 if is_packed else 1
    states, weights, has_biases, layers, rate, training, bidirectional = arguments[first : first + 7]
    if layers == 1 or not training or rate == 0:
        return kernel(*arguments)
    sizes, layout = arguments[1:first], arguments[first + 7 :]  # batch_sizes; batch_first
    are_pairs = isinstance(states, (tuple, list))  # an LSTM has a hidden and a cell state
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // layers
    output, finals = arguments[0], []
    for layer in range(layers):
        if layer:
            output = dropout(output, rate, key=_folded(key, layer))
        rows = slice(directions * layer, directions * (layer + 1))
        state: Any = [part[rows].contiguous() for part in states] if are_pairs else states[rows].contiguous()
        layer_weights = weights[per_layer * layer : per_layer * (layer + 1)]
        output, *last = kernel(
            output, *sizes, state, layer_weights, has_biases, 1, 0.0, training, bidirectional, *layout
        )
        finals.append(last)
    return (output, *_joined(finals))


def packs(arguments: Sequence[Any]) -> bool:
    """Return whether a recurrent kernel's arguments hold a packed sequence, whose weights stand one position later."""
    return isinstance(arguments[3], (list, tuple))


def _folded(key: Key | Tensor | SiteKeySource | None, layer: int) -> Key | Tensor | SiteKeySource | None:
    if key is None:
        return None
    return fold_in(key, layer) if isinstance(key, Tensor) else key.fold_in(layer)


def _joined(finals: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Concatenate the states of all layers."""
    return tuple(torch.cat(states) for states in zip(*finals, strict=True))
