"""Dropout of weights instead of activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from puredrop import functional
from puredrop._torch import recurrent_weights, set_recurrent_weights
from puredrop.functional.nested import refuse_nested
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["DropConnect", "EmbeddingDropout", "WeightDrop", "drop_connect"]


class DropConnect(Keyed):
    """A parametrization that drops weights.

    Use `drop_connect`, which registers this class on a layer's weight.

    Args:
        p: drop probability in [0, 1], a number or a 0-d tensor.
        key: the key of every mask; None draws a key per use from torch's default generator.
        shared_dims: dimensions of the weight over which elements share one decision.

    Shape: any; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Wan et al.: Regularization of neural networks using DropConnect (ICML 2013).

    >>> DropConnect(0.5, key=Key(3))(torch.ones(8))
    tensor([0., 0., 0., 2., 2., 0., 2., 0.])
    """

    def __init__(self, p: float | Tensor = 0.5, *, key: Key | None = None, shared_dims: Iterable[int] = ()) -> None:
        super().__init__(p, key=key)
        self.shared_dims = tuple(shared_dims)

    def samples_in(self, dim: int) -> None:
        """Return None: all samples share the weights."""

    def forward(self, weight: Tensor) -> Tensor:
        """Drop weights in training mode; in eval mode return them untouched."""
        if not isinstance(weight, Tensor) and (node := self.recorded(weight)) is not None:
            return node
        return functional.dropout(weight, self.p, self.training, key=self.key, shared_dims=self.shared_dims)


def drop_connect(
    module: torch.nn.Module,
    p: float | Tensor = 0.5,
    name: str = "weight",
    *,
    key: Key | None = None,
    shared_dims: Iterable[int] = (),
) -> torch.nn.Module:
    """Drop a layer's weights in training mode, with one mask for the whole batch.

    Use it on Linear and Conv layers. The mask is drawn anew wherever the weight is read. The expectation of a linear or
    convolutional layer's output is its output without dropout. In eval mode the weight itself is used.
    `puredrop.revert` undoes it, as does torch.nn.utils.parametrize.remove_parametrizations.

    Args:
        module: Linear, Conv or any module that reads the weight by its name; for recurrent networks use `WeightDrop`.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        name: attribute of the module that holds the weight.
        key: the key of every mask; None draws a key per use from torch's default generator.
        shared_dims: dimensions of the weight over which elements share one decision.

    Returns:
        The same module.

    Raises:
        ValueError: if the weight is dropped already, the module has no such parameter, or is a recurrent network.

    Reference: Wan et al.: Regularization of neural networks using DropConnect (ICML 2013).

    >>> layer = drop_connect(torch.nn.Linear(4, 3, bias=False), 0.5, key=Key(0))
    >>> layer(torch.ones(4)).shape
    torch.Size([3])
    """
    if isinstance(module, torch.nn.RNNBase):
        raise ValueError(
            f"module is {type(module).__name__}, whose kernel reads a list of weights made before; use WeightDrop"
        )
    registered = getattr(module, "parametrizations", {})
    if name in registered and any(isinstance(parametrization, DropConnect) for parametrization in registered[name]):
        raise ValueError(f"{name} of {type(module).__name__} is dropped already; a second mask would change its rate")
    parameters = dict(module.named_parameters(recurse=False))
    if name not in registered and name not in parameters:
        raise ValueError(f"name is {name!r}; expected a parameter of the module, one of {list(parameters)}")
    # Unsafe: torch then does not try the parametrization once, which would draw a key.
    parametrize.register_parametrization(module, name, DropConnect(p, key=key, shared_dims=shared_dims), unsafe=True)
    module.parametrizations[name].train(module.training)  # type: ignore[index, union-attr]
    return module


class WeightDrop(Keyed):
    """Drop the recurrent weights of a network, with one mask for all time steps of a forward.

    Use it on an LSTM, GRU or RNN (or a cell), where dropout of the states would erase the memory.

    Args:
        module: LSTM, GRU, RNN or their cells.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        weights: names of the weights to drop; None drops the weights from state to state (weight_hh...).
        key: each weight's mask has the key `key.fold_in(name)`; None draws a key per weight and forward.

    Shape: as the module's.

    Raises:
        ValueError: if the module has no such parameter.
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Merity, Keskar and Socher: Regularizing and optimizing LSTM language models (ICLR 2018).

    >>> output, state = WeightDrop(torch.nn.LSTM(3, 4), 0.5)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """

    shown = ("p", "weights")

    def __init__(
        self,
        module: torch.nn.Module,
        p: float | Tensor = 0.5,
        weights: Sequence[str] | None = None,
        *,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, key=key)
        named = dict(module.named_parameters(recurse=False))
        chosen = [name for name in named if name.startswith("weight_hh")] if weights is None else list(weights)
        missing = [name for name in chosen if name not in named]
        if missing or not chosen:
            raise ValueError(f"weights is {weights!r}; expected names among the module's parameters, {list(named)}")
        self.module = module
        self.weights = chosen

    def samples_in(self, dim: int) -> None:
        """Return None: all samples share the weights."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the module, in training mode with dropped weights."""
        if not (arguments and isinstance(arguments[0], Tensor)) and (
            (node := self.recorded(*arguments, **named)) is not None
        ):
            return node
        if not self.training:
            return self.module(*arguments, **named)
        dropped = {
            name: functional.dropout(
                getattr(self.module, name), self.p, key=None if self.key is None else self.key.fold_in(name)
            )
            for name in self.weights
        }
        return _called_with(self.module, dropped, arguments, named)


def _called_with(
    module: torch.nn.Module, weights: dict[str, Tensor], arguments: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Run a module with other tensors for some parameters; recurrent networks read their weights from a list."""
    if not isinstance(module, torch.nn.RNNBase):
        return torch.func.functional_call(module, weights, arguments, named)
    originals = recurrent_weights(module)
    set_recurrent_weights(module, {name: weights.get(name, weight) for name, weight in originals.items()})
    try:
        return module(*arguments, **named)
    finally:
        set_recurrent_weights(module, originals)


class EmbeddingDropout(Keyed):
    """Drop whole words of an embedding: wherever a dropped word occurs in the batch, its vector is zero.

    Use it on the embedding of a language model. It equals dropout of the embedding matrix's rows without a copy of the
    matrix: the mask follows the word's id.

    Args:
        embedding: module from integer ids (...) to vectors (..., E), such as torch.nn.Embedding.
        p: drop probability of a word, in [0, 1], a number or a 0-d tensor.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: ids (...) to vectors (..., E).

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Gal and Ghahramani: A theoretically grounded application of dropout in recurrent neural networks
    (NeurIPS 2016).

    >>> layer = EmbeddingDropout(torch.nn.Embedding(9, 4), 0.5)
    >>> layer(torch.tensor([[1, 2, 1]])).shape
    torch.Size([1, 3, 4])
    """

    shown = ("p",)

    def __init__(self, embedding: torch.nn.Module, p: float | Tensor = 0.5, *, key: Key | None = None) -> None:
        super().__init__(p, key=key)
        self.embedding = embedding

    def forward(self, ids: Tensor) -> Tensor:
        """Return the words' vectors, in training mode with zeros for dropped words."""
        if not isinstance(ids, Tensor) and (node := self.recorded(ids)) is not None:
            return node
        vectors: Tensor = self.embedding(ids)
        if not self.training:
            return vectors
        refuse_nested("EmbeddingDropout", vectors)
        rows = vectors.flatten(0, -2) if vectors.dim() > 1 else vectors.unsqueeze(0)
        dropped = functional.dropout(rows, self.p, key=self.key, shared_dims=(1,), sample_ids=ids.long().flatten())
        return dropped.view(vectors.shape)
