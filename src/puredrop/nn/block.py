"""DropBlock as a layer."""

from __future__ import annotations

from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["DropBlock2d"]


class DropBlock2d(Keyed):
    """Zeroes squares of each channel's map, so that the share of zeroed elements is p on average, on any map.

    Args:
        p: the share of elements to zero, in [0, 1], a number or a 0-d tensor.
        block_size: side of the squares; a larger one than the map is cut to it, with a warning.
        inplace: write the result into the input.
        couple_channels: whether all channels of a sample lose the same squares.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, C, H, W), input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], block_size is below 1, or the key is no `Key`.

    Reference: Ghiasi, Lin and Le: DropBlock, a regularization method for convolutional networks (NeurIPS 2018).
    """

    def __init__(
        self,
        p: float | Tensor = 0.1,
        block_size: int = 7,
        inplace: bool = False,
        *,
        couple_channels: bool = False,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, inplace, key=key)
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; expected a side of 1 or more elements")
        self.block_size = block_size
        self.couple_channels = couple_channels

    def forward(self, input: Tensor) -> Tensor:
        """Drop squares of the input in training mode; in eval mode return it untouched."""
        return functional.drop_block2d(
            input,
            self.p,
            self.block_size,
            self.training,
            self.inplace,
            couple_channels=self.couple_channels,
            key=self.key,
        )

    def extra_repr(self) -> str:
        """Rate and block size, and what differs from the defaults."""
        coupled = ", couple_channels=True" if self.couple_channels else ""
        return super().extra_repr() + f", block_size={self.block_size}{coupled}"
