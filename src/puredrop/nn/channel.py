"""Layers that drop whole channels: one decision per (sample, channel), shared over the rest.

They take the arguments of `Keyed`. Reference: Tompson et al.: Efficient object localization using convolutional
networks (CVPR 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed

__all__ = ["Dropout1d", "Dropout2d", "Dropout3d"]


class Dropout1d(Keyed, torch.nn.Dropout1d):
    """`torch.nn.Dropout1d` with masks that are a pure function of a key.

    Args:
        p: probability of dropping a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, C, L) or (C, L), input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        return functional.dropout1d(input, self.p, self.training, self.inplace, key=self.key)


class Dropout2d(Keyed, torch.nn.Dropout2d):
    """`torch.nn.Dropout2d` with masks that are a pure function of a key.

    Args:
        p: probability of dropping a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, C, H, W), input and output alike; (N, C, L) with torch's warning.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        return functional.dropout2d(input, self.p, self.training, self.inplace, key=self.key)


class Dropout3d(Keyed, torch.nn.Dropout3d):
    """`torch.nn.Dropout3d` with masks that are a pure function of a key.

    Args:
        p: probability of dropping a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, C, D, H, W) or (C, D, H, W), input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        return functional.dropout3d(input, self.p, self.training, self.inplace, key=self.key)
