"""The layer that drops single elements."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["Dropout"]


class Dropout(Keyed, torch.nn.Dropout):
    """`torch.nn.Dropout` with a mask that a key determines.

    Use it as torch's layer. The mask is drawn again in backward and never stored. To get a new mask in each step that a
    seed reproduces, leave the key out and call `puredrop.reproducible(model, seed=1)`.

    Args:
        p: drop probability in [0, 1]. A 0-d tensor is data, so that a scheduled rate needs no recompilation; it stays
            on its device and is not part of the state_dict, like torch's p.
        inplace: write the result into the input.
        key: the key of every mask, so that each forward drops the same units; None draws a key per forward from torch's
            default generator of the input's device.
        shared_dims: dimensions over which elements share one decision.

    Shape: any; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014).

    >>> layer = Dropout(0.5, key=Key(3))
    >>> layer
    puredrop.nn.Dropout(p=0.5, inplace=False, key=Key(3))
    >>> layer(torch.ones(8))
    tensor([0., 0., 0., 2., 2., 0., 2., 0.])
    >>> layer.eval()(torch.ones(8))
    tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """

    shared_dims: tuple[int, ...] = ()

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        key: Key | None = None,
        shared_dims: Iterable[int] = (),
    ) -> None:
        super().__init__(p, inplace, key=key)
        self.shared_dims = tuple(shared_dims)

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.dropout(
            input, self.p, self.training, self.inplace, key=self.key, shared_dims=self.shared_dims
        )

    def extra_repr(self) -> str:
        """Return torch's text and the arguments that differ from their defaults."""
        return super().extra_repr() + (f", shared_dims={self.shared_dims}" if self.shared_dims else "")
