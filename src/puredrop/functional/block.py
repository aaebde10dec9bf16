"""DropBlock: squares of a feature map, dropped at exactly the requested rate."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop import ops
from puredrop.functional.element import kept, passes, warn
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["drop_block2d"]


def drop_block2d(
    input: Tensor,
    p: float | Tensor = 0.1,
    block_size: int = 7,
    training: bool = True,
    inplace: bool = False,
    *,
    couple_channels: bool = False,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero squares of each channel's map, so that the share of zeroed elements is p on average.

    Use it on convolutional maps where `dropout2d` removes too much. Each position at which a block fits is the corner
    of a block with probability gamma. Gamma is solved for: the paper's approximation drops 21 to 94 % for p = .1 on
    small maps. Each sample's kept elements are scaled by the inverse of the share that the sample kept.

    Args:
        input: float tensor (N, C, H, W).
        p: share of elements to zero, in [0, 1], a number or a 0-d tensor.
        block_size: side of the squares, in elements; a side larger than the map is cut to the map, with a warning.
        couple_channels: drop the same squares in all channels of a sample (timm's default).
        training, inplace, key, sample_ids, sample_dim: as in `dropout`.
        window: as in `dropout`, along samples and channels only: blocks need the whole map.

    Returns:
        A tensor like the input, as `dropout`; zeros for a sample that keeps no element.

    Raises:
        RuntimeError: for an input of another rank.
        ValueError: if block_size is below 1 or the window cuts the map; and as `dropout`.
        TypeError: as `dropout`.

    Reference: Ghiasi, Lin and Le: DropBlock, a regularization method for convolutional networks (NeurIPS 2018).

    >>> drop_block2d(torch.ones(1, 1, 4, 4), 0.3, 2, key=Key(1))[0, 0].count_nonzero()
    tensor(5)
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(drop_block2d, locals())
    rate = ops.as_rate(p)
    if ops.check_tensor("input", input) != 4:
        raise RuntimeError(
            f"drop_block2d: input has shape {tuple(input.shape)}; expected (N, C, H, W) (for one image unsqueeze(0))"
        )
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; expected a side of 1 or more elements")
    if passes(input, rate, training):
        return input
    ops.check_dtype(input)
    height, width = input.shape[2:]
    block = (min(block_size, height), min(block_size, width))
    if block != (block_size, block_size):
        warn(
            f"drop_block2d: block_size {block_size} is larger than a map of {height}x{width}; cut to it. A smaller "
            "block drops squares where this one drops whole channels",
            stacklevel=2,
        )
    places = (height - block[0] + 1, width - block[1] + 1)
    if window is not None:
        ops.check_window(window)
        if window.shape[2:] != (height, width) or any(window.offset[2:]):
            raise ValueError(
                f"window is {window}; expected the whole map, {height}x{width} from (0, 0): blocks need it"
            )
        window = Window((*window.shape[:2], *places), window.offset)
    corners = input[:, :, : places[0], : places[1]]  # one decision per block position
    place = ops.place_of(corners.shape, (1,) if couple_channels else (), window, sample_ids, sample_dim)
    corner = ~kept(corners, _corner_rate(rate, height, width, *block), key, place)
    padding = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
    keep = F.max_pool2d(F.pad(corner.float(), padding), block, stride=1) == 0
    share = keep.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float32)  # float16 would overflow at 65 504 elements
    scale = torch.where(share > 0, 1 / share, 0).to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    output = torch.where(keep, input * scale, 0).to(input.dtype)
    return input.copy_(output) if inplace else output


def _corner_rate(p: float | Tensor, *sizes: int) -> float | Tensor:
    """Return the corner probability at which elements are zeroed at rate p on average.

    Args:
        p: rate of elements.
        sizes: height and width of the map, then of the block.
    """
    if isinstance(p, Tensor):
        solved: Tensor = _solve(p.detach().double(), *sizes)
        return solved
    if torch.compiler.is_compiling():  # which would warn of the cache
        return float(_solve(p, *sizes))
    return float(_kept_solve(p, *sizes))


def _solve(p: Any, height: int, width: int, block_height: int, block_width: int) -> Any:
    """Solve for the corner probability by bisection; p is a number or a 0-d tensor."""
    rows, columns = _covers(height, block_height), _covers(width, block_width)
    elements: dict[int, int] = {}  # number of corners that can zero an element -> elements; compilers know no Counter
    for count in [a * b for a in rows for b in columns]:
        elements[count] = elements.get(count, 0) + 1
    rate, step = 0.0 * p, 1.0
    for _ in range(60):
        step /= 2
        kept = sum(n * (1 - rate - step) ** count for count, n in elements.items()) / (height * width)
        rate = rate + step * (1 - kept < p)
    return rate + (1 - rate) * (p >= 1)


_kept_solve = functools.lru_cache(maxsize=256)(_solve)


def _covers(size: int, block: int) -> list[int]:
    """Count the block positions that cover each position of a line."""
    return [min(i + 1, size - i, block, size - block + 1) for i in range(size)]
