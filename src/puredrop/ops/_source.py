"""What stands in the place of a key where masks are pinned: it says key and place when the call is made."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from puredrop.ops._arguments import Place
from puredrop.rng import Key

__all__ = ["PACKED", "DropoutOverride", "SiteKeySource", "KeySource", "with_sample_dim", "active", "resolve_key"]

PACKED = -1
"""Instead of a dimension: the samples lie in none, as in a packed sequence's data."""


class DropoutOverride(ABC):
    """Abstract: what drops in the place of the operator, where the masks of several forwards depend on each other."""

    @abstractmethod
    def drop(self, input: Tensor, p: float | Tensor, place: Place, inplace: bool) -> Tensor:
        """What the operator returns; arguments as its own."""


class KeySource(ABC):
    """Abstract: where the key and the place of a call come from when the caller knows neither."""

    @abstractmethod
    def resolve(self, kind: str, input: Tensor, place: Place) -> tuple[Key | Tensor | DropoutOverride, Place]:
        """Key and place of the call that is being made, once for each; a decider only for "dropout".

        Args:
            kind: the operator's name.
            input: what it is applied to.
            place: as far as the caller knows it.
        """


class SiteKeySource(KeySource):
    """Abstract: a source that stands in the place of one site's key."""

    @abstractmethod
    def fold_in(self, data: int | str) -> SiteKeySource:
        """Where the keys come from that are these with data folded in."""

    @abstractmethod
    def with_sample_dim(self, dim: int) -> SiteKeySource:
        """The same for a call whose samples lie in another dimension than the model's do, or `PACKED`."""


class _Opened(threading.local):
    source: KeySource | None = None


active = _Opened()
"""In each thread, what gives keys to the calls that are given none."""


def with_sample_dim(key: Any, dim: int | None) -> Any:
    """A key, or what stands for one, which is told where the samples lie; None where that is not known."""
    return key.with_sample_dim(dim) if isinstance(key, SiteKeySource) and dim is not None else key


def resolve_key(kind: str, input: Tensor, key: Any, place: Place) -> tuple[Any, Place]:
    """What a call is keyed by, from what was given or from what is open, and its place.

    Keyed by a `Key`, a tensor or a decider; None for a key that is to be drawn.
    """
    source = active.source if key is None else key
    # Every call comes by here, and nearly all with one of these two; an instance check of an abstract class costs more.
    if source is None or type(source) is Key:
        return source, place
    return source.resolve(kind, input, place) if isinstance(source, KeySource) else (source, place)
