"""State of a pinned model's forward, as its sites read it."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from torch.nn import Module

from puredrop.ops import KeySource
from puredrop.pinning._samples import FIRST, Samples

__all__ = ["ForwardState"]


class ForwardState(KeySource):
    """Abstract base of the forward of a pinned model, open or not.

    Attributes:
        root: the model.
        depth: number of nested opens; 0 outside of a forward.
        samples: the samples of the forward.
        has_dropped: whether a site was used in the forward.
        is_replayed: whether the forward is a recomputation by torch.utils.checkpoint.
        is_compiled: whether a site was ever used in compiled code.
        is_parallel: whether the model's layers are sharded over processes.
        is_released: whether the model has been unpinned.
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
        """Return the state with which a region of the forward begins."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Return to a state."""

    @abstractmethod
    def replayed(self, state: Any) -> AbstractContextManager[None]:
        """Run a region again from the state that it began with."""
