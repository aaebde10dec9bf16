"""DropBlock as a layer."""

from __future__ import annotations

from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["DropBlock2d"]


class DropBlock2d(Keyed):
    """Zero squares of each channel's map, so that the share of zeroed elements is p on average.

    Use it on convolutional maps, whose neighbouring elements carry the same information. The rate is met on maps of any
    size.

    Args:
        p: share of elements to zero, in [0, 1], a number or a 0-d tensor.
        block_size: side of the squares, in elements; a side larger than the map is cut to the map, with a warning.
        inplace: write the result into the input.
        couple_channels: drop the same squares in all channels of a sample.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, C, H, W); the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], block_size is below 1, or the key is no `Key`.

    Reference: Ghiasi, Lin and Le: DropBlock, a regularization method for convolutional networks (NeurIPS 2018).

    >>> import torch
    >>> DropBlock2d(0.1, block_size=3)(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
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
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
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
        """Return the rate, the block size and the arguments that differ from their defaults."""
        coupled = ", couple_channels=True" if self.couple_channels else ""
        return super().extra_repr() + f", block_size={self.block_size}{coupled}"
