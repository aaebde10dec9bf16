"""Layers for sequences: one mask over time, replaced words, removed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import functional, ops
from puredrop.functional.element import kept
from puredrop.functional.nested import refuse_nested
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key

__all__ = ["LockedDropout", "PatchDropout", "WordDropout"]


class LockedDropout(Keyed):
    """Drop the same units at every time step of a sample (variational dropout).

    Use it on the inputs and outputs of a recurrent network, where a new mask per step would erase the memory.

    Args:
        p: drop probability in [0, 1], a number or a 0-d tensor.
        inplace: write the result into the input.
        batch_first: read time from dimension 1; with False, time is dimension 0.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (T, N, ...), or (N, T, ...) with batch_first; the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Gal and Ghahramani: A theoretically grounded application of dropout in recurrent neural networks
    (NeurIPS 2016).

    >>> output = LockedDropout(0.5)(torch.ones(5, 2, 3))
    >>> torch.equal(output[0], output[4])
    True
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
        """Return the batch dimension, which is not the time dimension."""
        return 0 if self.batch_first else 1

    def forward(self, input: Tensor) -> Tensor:
        """Drop units of the input in training mode; in eval mode return it untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        time = (1,) if self.batch_first else (0,)
        return functional.dropout(input, self.p, self.training, self.inplace, key=self.key, shared_dims=time)

    def extra_repr(self) -> str:
        """Return the rate and the place of the batch dimension."""
        return super().extra_repr() + f", batch_first={self.batch_first}"


class WordDropout(Keyed):
    """Replace words by another word, usually the unknown word, with probability p.

    Use it on the ids of a decoder's input, so that a text model does not rely on the previous word alone.

    Args:
        replacement: id that replaces a dropped word.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        protected: ids that are never dropped, such as padding, begin and end.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: integer ids of any shape; the output has the input's shape.

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
        if not isinstance(ids, Tensor) and (node := self.recorded(ids)) is not None:
            return node
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"ids has dtype {ids.dtype}; expected integers: words are dropped before their embedding")
        if not self.training or ids.numel() == 0:
            return ids
        refuse_nested("WordDropout", ids)
        stays = kept(ids, ops.as_rate(self.p), self.key, ops.place_of(ids.shape))
        for word in self.protected:
            stays = stays | (ids == word)
        return torch.where(stays, ids, self.replacement)


class PatchDropout(Keyed):
    """Remove tokens from each sequence: exactly max(1, int(L (1-p))) of L tokens stay.

    Use it after the patch embedding of a vision transformer, to train on shorter sequences. Nothing is rescaled. timm's
    arguments are prob, num_prefix_tokens, ordered, return_indices.

    Args:
        p: share of tokens to remove, in [0, 1].
        num_prefix_tokens: number of tokens at the start that always stay (class tokens) and do not count in L.
        ordered: keep the tokens in their order; with False in the order of the draw.
        return_indices: return the positions of the kept tokens too, or None where none was removed.
        key: the key of every choice; None draws a key per forward from torch's default generator.

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
        """Return 0, since the samples are the first dimension of (N, L, D).

        Args:
            dim: the dimension of the samples in the model; not used.
        """
        return 0

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Remove tokens in training mode; in eval mode return the input untouched."""
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
        rate = float(ops.as_rate(self.p))
        if not self.training or rate == 0:
            return (input, None) if self.return_indices else input
        refuse_nested("PatchDropout", input)
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
