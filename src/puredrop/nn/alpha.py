"""Dropout layers for self-normalising networks."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed

__all__ = ["AlphaDropout", "FeatureAlphaDropout"]


class AlphaDropout(Keyed, torch.nn.AlphaDropout):
    """`torch.nn.AlphaDropout` with a mask that a key determines.

    Use it after `torch.nn.SELU`: dropped elements take SELU's saturation value, and mean 0 and variance 1 are restored.

    Args:
        p: drop probability in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: any; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).

    >>> AlphaDropout(0.5).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.alpha_dropout(input, self.p, self.training, self.inplace, key=self.key)


class FeatureAlphaDropout(Keyed, torch.nn.FeatureAlphaDropout):
    """`torch.nn.FeatureAlphaDropout` with a mask that a key determines.

    Use it after a convolution and `torch.nn.SELU`: it applies `AlphaDropout` to whole channels.

    Args:
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, C, ...); the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).

    >>> FeatureAlphaDropout(0.5)(torch.ones(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.feature_alpha_dropout(input, self.p, self.training, self.inplace, key=self.key)
