"""Dropout layers for self-normalising networks."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed

__all__ = ["AlphaDropout", "FeatureAlphaDropout"]


class AlphaDropout(Keyed, torch.nn.AlphaDropout):
    """`torch.nn.AlphaDropout`, whose mask is a pure function of a key: mean 0 and variance 1 stay.

    Args:
        p: probability of a drop, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: input and output are of any, equal, shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of the input in training mode; in eval mode return it untouched."""
        return functional.alpha_dropout(input, self.p, self.training, self.inplace, key=self.key)


class FeatureAlphaDropout(Keyed, torch.nn.FeatureAlphaDropout):
    """`AlphaDropout` of whole channels, as `torch.nn.FeatureAlphaDropout`.

    Args:
        p: probability of dropping a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, C, ...), input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Klambauer et al.: Self-normalizing neural networks (NeurIPS 2017).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        return functional.feature_alpha_dropout(input, self.p, self.training, self.inplace, key=self.key)
