"""The layer of multiplicative Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["GaussianDropout"]


class GaussianDropout(Keyed):
    """Multiply each element by Gaussian noise of mean 1 and variance p/(1-p), the variance of dropout's noise.

    Use it in place of dropout where exact zeros are harmful. Factors are negative in 16 % of cases at p = 0.5, so signs
    may flip.

    Args:
        p: rate of the dropout whose variance the noise has, in [0, 1), a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of all noise; None draws a key per forward from torch's default generator.

    Shape: any; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1), or the key is no `Key`.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014), 10.

    >>> import torch
    >>> GaussianDropout(0.5, key=Key(3))(torch.ones(4)).round(decimals=2)
    tensor([ 0.0900,  1.7600, -0.1900,  1.8100])
    """

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False, *, key: Key | None = None) -> None:
        super().__init__(p, inplace, key=key)
        if not isinstance(p, Tensor) and p == 1:
            raise ValueError(f"p is {p}; GaussianDropout expects p below 1, for its noise has variance p/(1-p)")

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the input by noise in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.gaussian_dropout(input, self.p, self.training, self.inplace, key=self.key)
