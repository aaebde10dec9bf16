"""Layers that drop whole channels, with one decision per (sample, channel)."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed

__all__ = ["Dropout1d", "Dropout2d", "Dropout3d"]


class Dropout1d(Keyed, torch.nn.Dropout1d):
    """`torch.nn.Dropout1d` with a mask that a key determines.

    Use it after a 1-D convolution: it zeroes whole channels, since neighbouring positions carry the same information.

    Args:
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, C, L) or (C, L); the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> from puredrop import Key
    >>> Dropout1d(0.5, key=Key(0))(torch.ones(1, 3, 4)).mean(dim=2)
    tensor([[2., 2., 0.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.dropout1d(input, self.p, self.training, self.inplace, key=self.key)


class Dropout2d(Keyed, torch.nn.Dropout2d):
    """`torch.nn.Dropout2d` with a mask that a key determines.

    Use it after a 2-D convolution: it zeroes whole channels, since neighbouring elements carry the same information.

    Args:
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, C, H, W), or (N, C, L) with torch's warning; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> from puredrop import Key
    >>> Dropout2d(0.5, key=Key(0))(torch.ones(1, 3, 2, 2)).mean(dim=(2, 3))
    tensor([[2., 2., 0.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.dropout2d(input, self.p, self.training, self.inplace, key=self.key)


class Dropout3d(Keyed, torch.nn.Dropout3d):
    """`torch.nn.Dropout3d` with a mask that a key determines.

    Use it after a 3-D convolution: it zeroes whole channels, since neighbouring elements carry the same information.

    Args:
        p: drop probability of a channel, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, C, D, H, W) or (C, D, H, W); the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Tompson et al.: Efficient object localization using convolutional networks (CVPR 2015).

    >>> from puredrop import Key
    >>> Dropout3d(0.5, key=Key(0))(torch.ones(1, 3, 2, 2, 2)).mean(dim=(2, 3, 4))
    tensor([[2., 2., 0.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        return functional.dropout3d(input, self.p, self.training, self.inplace, key=self.key)
