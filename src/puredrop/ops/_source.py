"""Key sources: objects that take the place of a key and answer each call with its key and its place.

The `key` of an operator is one of four things: a `Key` or a 0-d int64 tensor, the key itself; None, for the source that
is active in the thread, else for a key drawn from torch's generator; or a `KeySource`. `puredrop.reproducible` and
ensembles use sources, because the key of a call depends on the step or the member at the time of the call.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from puredrop.ops._arguments import Place
from puredrop.rng import Key

__all__ = [
    "AnyKey",
    "DropoutOverride",
    "KeySource",
    "PACKED",
    "SiteKeySource",
    "active",
    "resolve_key",
    "with_sample_dim",
]

PACKED = -1
"""Sample dimension of tensors in which no dimension holds the samples, such as a packed sequence's data."""


class DropoutOverride(ABC):
    """Abstract: a replacement of the dropout operator, for forwards whose masks depend on each other."""

    @abstractmethod
    def drop(self, input: Tensor, p: float | Tensor, place: Place, inplace: bool) -> Tensor:
        """Drop elements of the input, as `ops.dropout` does."""


class KeySource(ABC):
    """Abstract: an object that answers a call with its key and its place."""

    @abstractmethod
    def resolve(self, kind: str, input: Tensor, place: Place) -> tuple[Key | Tensor | DropoutOverride, Place]:
        """Return key and place of the current call; each call asks once. Only "dropout" accepts a `DropoutOverride`.

        Args:
            kind: name of the operator, "dropout" or "gaussian_dropout".
            input: the tensor that the operator is applied to.
            place: the place of the input as far as the caller knows it.
        """


class SiteKeySource(KeySource):
    """Abstract: the source of one site, which takes the place of a layer's key."""

    @abstractmethod
    def fold_in(self, data: int | str) -> SiteKeySource:
        """Return the source of this source's keys with data folded in."""

    @abstractmethod
    def with_sample_dim(self, dim: int) -> SiteKeySource:
        """Return the source for a call whose samples lie in another dimension than the model's, or in `PACKED`."""


AnyKey = Key | Tensor | KeySource | DropoutOverride | None
"""Every `key` that an operator takes; a `DropoutOverride` only as the answer of a source."""


class _Active(threading.local):
    source: KeySource | None = None


active = _Active()
"""The source of each thread, in `active.source`: it gives keys to calls with key=None. None draws them from torch."""


def with_sample_dim(key: Any, dim: int | None) -> Any:
    """Return a site's key source for samples in a dimension; other keys, and all keys for None, stay unchanged."""
    return key.with_sample_dim(dim) if isinstance(key, SiteKeySource) and dim is not None else key


def resolve_key(kind: str, input: Tensor, key: AnyKey, place: Place) -> tuple[Any, Place]:
    """Return the key and the place of a call, after asking its source or the active one.

    Returns:
        A `Key`, a tensor, a `DropoutOverride`, or None for a key to be drawn, typed Any so that the short path of the
        operators need not check; and the place.
    """
    source = active.source if key is None else key
    # Every call comes by here, and nearly all with one of these two; an instance check of an abstract class costs more.
    if source is None or type(source) is Key:
        return source, place
    return source.resolve(kind, input, place) if isinstance(source, KeySource) else (source, place)
