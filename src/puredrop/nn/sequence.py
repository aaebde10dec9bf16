"""Layers for sequences: one mask over time, words replaced, tokens taken out."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional, ops
from puredrop.functional.element import kept
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["LockedDropout", "PatchDropout", "WordDropout"]


class LockedDropout(Keyed):
    """Drops the same units at every time step of a sample (variational dropout).

    Args:
        p: probability of a drop, in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        batch_first: whether time is dimension 1, else 0.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (T, N, ...), or (N, T, ...) with batch_first; input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Gal and Ghahramani: A theoretically grounded application of dropout in recurrent neural networks
    (NeurIPS 2016).
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        batch_first: bool = False,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, inplace, key=key)
        self.batch_first = batch_first

    def samples_in(self, dim: int) -> int:
        """Where time is not."""
        return 0 if self.batch_first else 1

    def forward(self, input: Tensor) -> Tensor:
        """Drop units of the input in training mode; in eval mode return it untouched."""
        time = (1,) if self.batch_first else (0,)
        return functional.dropout(input, self.p, self.training, self.inplace, key=self.key, shared_dims=time)

    def extra_repr(self) -> str:
        """Rate, and where time is."""
        return super().extra_repr() + f", batch_first={self.batch_first}"


class WordDropout(Keyed):
    """Replaces words by another word, as a rule the unknown one, with probability p.

    Args:
        replacement: id that stands for a dropped word.
        p: probability of a drop, in [0, 1], a number or a 0-d tensor.
        protected: ids that are never dropped: padding, begin, end.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: integer ids of any shape, input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`; for ids that are no integers.

    Reference: Bowman et al.: Generating sentences from a continuous space (CoNLL 2016).

    >>> WordDropout(replacement=0, p=0.5, protected=[2], key=Key(3))(torch.tensor([2, 7, 8, 9]))
    tensor([2, 0, 0, 9])
    """

    shown = ("replacement", "p", "protected")

    def __init__(
        self,
        replacement: int,
        p: float | Tensor = 0.5,
        protected: list[int] | tuple[int, ...] = (),
        *,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, key=key)
        self.replacement = replacement
        self.protected = tuple(protected)

    def forward(self, ids: Tensor) -> Tensor:
        """Replace words in training mode; in eval mode return them untouched."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"ids has dtype {ids.dtype}; expected integers: words are dropped before their embedding")
        if not self.training or ids.numel() == 0:
            return ids
        stays = kept(ids, self.p, self.key, ops.place_of(ids.shape))
        for word in self.protected:
            stays = stays | (ids == word)
        return torch.where(stays, ids, self.replacement)


class PatchDropout(Keyed):
    """Takes tokens out of each sequence, as many as the rate says exactly: max(1, int(L (1-p))) of L stay.

    Nothing is rescaled. timm's arguments: prob, num_prefix_tokens, ordered, return_indices.

    Args:
        p: the share of tokens to take out, in [0, 1].
        num_prefix_tokens: so many at the start always stay (class tokens) and are not counted in L.
        ordered: keep the tokens in order, else in that of the draw.
        return_indices: return the places of those kept as well, None where none was taken out.
        key: draw every choice from this key; None draws one key per forward from torch's default generator.

    Shape: (N, L, D) to (N, L', D).

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Liu et al.: PatchDropout, economizing vision transformers using patch dropout (WACV 2023).

    >>> PatchDropout(0.5)(torch.zeros(2, 1 + 10, 3)).shape
    torch.Size([2, 6, 3])
    """

    shown = ("p", "num_prefix_tokens", "ordered")

    def __init__(
        self,
        p: float | Tensor = 0.5,
        num_prefix_tokens: int = 1,
        ordered: bool = False,
        return_indices: bool = False,
        *,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, key=key)
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens is {num_prefix_tokens}; expected 0 or more")
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered
        self.return_indices = return_indices

    def samples_in(self, dim: int) -> int:
        """First, as the tokens' shape says."""
        return 0

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Take tokens out in training mode; in eval mode return the input untouched."""
        rate = float(self.p)
        if not self.training or rate == 0:
            return (input, None) if self.return_indices else input
        prefix, tokens = input[:, : self.num_prefix_tokens], input[:, self.num_prefix_tokens :]
        batch, length = tokens.shape[:2]
        # Any continuous noise ranks the tokens; float64, so that two of them are hardly ever equal.
        ones = torch.ones((), dtype=torch.float64, device=input.device).expand(batch, length)
        noise = ops.gaussian_dropout(ones, self.key, 0.5, ops.place_of(ones.shape))
        indices = noise.argsort(dim=1, stable=True)[:, : max(1, int(length * (1 - rate)))]
        if self.ordered:
            indices = indices.sort(dim=1).values
        places = indices.view(batch, -1, *[1] * (tokens.dim() - 2)).expand(-1, -1, *tokens.shape[2:])
        output = torch.cat((prefix, tokens.gather(1, places)), dim=1)
        return (output, indices) if self.return_indices else output
