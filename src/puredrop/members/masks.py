"""The masks of members: the units that each member of an ensemble keeps at one use of a site."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puredrop import ops
from puredrop.rng import BALANCED, Key, philox

__all__ = ["BLOCK", "DrawnMasks", "EnumeratedMasks", "Masks", "ranks"]

BLOCK = 16
"""Members of a block, whose masks are balanced against each other; blocks are independent of each other."""

_LOW = 0xFFFFFFFF


def ranks(key: int, blocks: Sequence[int], count: int, offset: int = 0, device: torch.device | None = None) -> Tensor:
    """Return each unit's order of the members of a block: the sixteenth of [0, 1) that its number comes from.

    Member s of a block has rank a*s + c in the field of 16 elements. c is uniform, so each rank of a single member is
    exactly uniform; a is not 0, so the ranks of a block are a permutation; and any two members have any two different
    ranks equally often (but for 2^-12), as under a random permutation, on whose pairs alone the error of a mean
    depends. Units, and blocks, are independent. A random permutation would need a sort for each unit: this needs 16
    bits of it.

    Args:
        key: below 2^64.
        blocks: numbers of blocks.
        count: of units.
        offset: the first unit's number.
        device: of the result.

    Returns:
        uint8 (blocks, 16, units).

    Reference: stratified sampling, Owen: Monte Carlo theory, methods and examples (2013), chapter 8.
    """
    first, last = offset // 8, -(-(offset + count) // 8)
    groups = torch.arange(first, last, device=device)[None, :]
    numbers = torch.tensor(blocks, dtype=torch.int64, device=device)[:, None]
    zero = torch.zeros_like(groups + numbers)
    words = philox(
        Key(key).tensor(device),
        (zero + (groups & _LOW), zero + ((groups >> 32) & _LOW), zero + numbers, zero + BALANCED),
    )
    halves = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    bits = torch.stack(halves, 2).flatten(1)[:, offset - 8 * first :][:, :count].unsqueeze(1)
    factor, rank = (1 + (bits >> 4) % (BLOCK - 1)).to(torch.uint8), (bits & (BLOCK - 1)).to(torch.uint8)
    # The product is linear in the factor's bits: the products of the bits are added, and adding is xor.
    for bit, products in enumerate(_powers(bits.device)):
        rank = rank ^ ((factor >> bit) & 1) * products
    return rank


def _powers(device: torch.device) -> Tensor:
    """Return the products of 1, x, x^2, x^3 and each member's number modulo x^4 + x + 1, uint8 (4, 16, 1)."""
    row = list(range(BLOCK))
    rows = [row]
    for _ in range(3):
        row = [(element << 1) ^ (0b10011 if element & 8 else 0) for element in row]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.uint8, device=device).unsqueeze(2)


class Masks(ABC):
    """Abstract: the masks of all members at one use of a site."""

    @abstractmethod
    def keep(self, members: Sequence[int], p: float, count: int, offset: int, device: torch.device) -> Tensor:
        """Return which of `count` units from number `offset` on are kept, bool (members, count)."""

    def dropped(self, members: Sequence[int], input: Tensor, p: float, offset: int) -> Tensor | None:
        """Return an input (members or 1, count) with its units dropped, or None where that needs a mask."""
        return None


@dataclass(frozen=True)
class DrawnMasks(Masks):
    """Masks drawn from a key.

    Args:
        key: of the use.
        balanced: whether the members of a block are balanced: of 16 uniform numbers of a unit each lies in another
            sixteenth of [0, 1). Each member alone is iid Bernoulli all the same.
    """

    key: Key
    balanced: bool

    def keep(self, members: Sequence[int], p: float, count: int, offset: int, device: torch.device) -> Tensor:
        """Return the kept units, as `Masks.keep` has them."""
        if not self.balanced:
            return self._draw(members, p, count, offset, device)
        # u = (rank + v) / 16 is below p where rank < floor(16 p), or rank = floor(16 p) and v < 16 p - floor(16 p).
        below = math.floor(BLOCK * p)
        blocks = sorted({member // BLOCK for member in members})
        rank = ranks(int(self.key), blocks, count, offset, device).flatten(0, 1)
        if list(members) != [block * BLOCK + s for block in blocks for s in range(BLOCK)]:
            which = [blocks.index(member // BLOCK) * BLOCK + member % BLOCK for member in members]
            rank = rank[torch.tensor(which, device=device)]
        if BLOCK * p == below:
            return rank >= below
        return (rank > below) | ((rank == below) & self._draw(members, BLOCK * p - below, count, offset, device))

    def dropped(self, members: Sequence[int], input: Tensor, p: float, offset: int) -> Tensor | None:
        """Drop by the operator itself, in place; None where autograd would have to follow, or masks are balanced."""
        if self.balanced or (input.requires_grad and torch.is_grad_enabled()):
            return None
        place = _from(offset, input.shape[1])
        output = input.expand(len(members), -1).clone(memory_format=torch.contiguous_format)
        for member, row in zip(members, output, strict=True):
            ops.dropout(row, self.key.fold_in(member), p, place, inplace=True)
        return output

    def _draw(self, members: Sequence[int], p: float, count: int, offset: int, device: torch.device) -> Tensor:
        """Draw the contract's masks under each member's key."""
        ones, place = torch.ones(count, device=device), _from(offset, count)
        return torch.stack([ops.dropout(ones, self.key.fold_in(member), p, place).ne(0) for member in members])


def _from(offset: int, count: int) -> ops.Place:
    """Return the place of units from a number on."""
    return ops.Place(window_shape=(offset + count,), window_offset=(offset,)) if offset else ops.Place()


@dataclass(frozen=True)
class EnumeratedMasks(Masks):
    """Masks that enumerate all states: bit j of a member's number says whether it keeps the model's unit j.

    Args:
        first: how many units other uses have before this one's.
    """

    first: int

    def keep(self, members: Sequence[int], p: float, count: int, offset: int, device: torch.device) -> Tensor:
        """Return the kept units, as `Masks.keep` has them."""
        numbers = torch.tensor(members, device=device)[:, None]
        return (numbers >> torch.arange(self.first + offset, self.first + offset + count, device=device)) & 1 == 1
