"""What a site must know of the forward it is used in."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from torch.nn import Module

from puredrop.ops import KeySource
from puredrop.pinning._samples import FIRST, Samples

__all__ = ["ForwardState"]


class ForwardState(KeySource):
    """Abstract: the forward of a pinned model, open or not.

    Attributes:
        root: the model.
        depth: how often it was opened and not closed; 0 outside of any.
        samples: that it is given.
        has_dropped: whether a site was used in it.
        is_replayed: whether it is a recomputation by torch.utils.checkpoint.
        is_compiled: whether a site was ever used in compiled code.
        is_parallel: whether the model's layers are cut over processes.
        is_released: whether the model is pinned no longer.
        outer: the key source that was active when this forward was opened.
        thread: the logical thread that opened the last forward; None before the first.
    """

    root: Module
    depth: int = 0
    samples: Samples = FIRST
    has_dropped: bool = False
    is_replayed: bool = False
    is_compiled: bool = False
    is_parallel: bool = False
    is_released: bool = False
    outer: Any = None
    thread: int | None = None

    @abstractmethod
    def snapshot(self) -> Any:
        """The state that a region of the forward begins with."""

    @abstractmethod
    def replayed(self, state: Any) -> AbstractContextManager[None]:
        """Run a region again from the state that it began with."""
