"""A layer of multiplicative Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["GaussianDropout"]


class GaussianDropout(Keyed):
    """Multiplies each element by noise of mean 1 and variance p/(1-p), that of dropout; nothing is zeroed.

    Args:
        p: the rate of the dropout whose variance the noise has, in [0, 1), a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw all noise from this key; None draws one key per forward from torch's default generator.

    Shape: input and output are of any, equal, shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1), or the key is no `Key`.

    Reference: Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting (JMLR 2014), 10.
    """

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False, *, key: Key | None = None) -> None:
        super().__init__(p, inplace, key=key)
        if not isinstance(p, Tensor) and p == 1:
            raise ValueError(f"p is {p}; GaussianDropout expects p below 1, for its noise has variance p/(1-p)")

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the input by noise in training mode; in eval mode return it untouched."""
        return functional.gaussian_dropout(input, self.p, self.training, self.inplace, key=self.key)
