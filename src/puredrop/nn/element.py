"""Layers that drop single elements."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["Dropout"]


class Dropout(Keyed, torch.nn.Dropout):
    """`torch.nn.Dropout` whose mask is a pure function of a key, is never stored, and is drawn again in backward.

    Args:
        p: probability of a drop, in [0, 1]; a 0-d tensor is data, so that a scheduled rate costs no recompilation (it
            is no part of the state_dict and stays on its device, as torch's p does).
        inplace: write the result into the input.
        key: draw every mask from this key, so that the layer drops the same units in each forward; None draws one
            key per forward from torch's default generator of the input's device.
        shared_dims: dimensions over which one decision is shared.

    Shape: input and output are of any, equal, shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014).

    >>> layer = Dropout(0.5, key=Key(3))
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
        return functional.dropout(
            input, self.p, self.training, self.inplace, key=self.key, shared_dims=self.shared_dims
        )

    def extra_repr(self) -> str:
        """Torch's text, then what differs from the defaults."""
        return super().extra_repr() + (f", shared_dims={self.shared_dims}" if self.shared_dims else "")
