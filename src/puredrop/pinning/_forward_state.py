"""State of a pinned model's forward, as its sites read it."""

from __future__ import annotations

import threading
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from torch.nn import Module

from puredrop.inspection.state import logical_thread
from puredrop.ops import KeySource
from puredrop.pinning._mapping import Slices
from puredrop.pinning._samples import FIRST, Samples

__all__ = ["ForwardState", "raise_now"]


class ForwardState(KeySource):
    """Abstract base of the forward of a pinned model, open or not.

    Attributes:
        root: the model.
        depth: number of nested opens; 0 outside of a forward.
        samples: the samples of the forward.
        slices: levels of torch.func.vmap around it; None outside of transforms of torch.func.
        has_dropped: whether a site was used in the forward.
        is_replayed: whether the forward is a recomputation by torch.utils.checkpoint.
        is_compiled: whether a site was ever used in compiled code.
        is_parallel: whether the model's layers are sharded over processes.
        is_released: whether the model has been unpinned.
        outer: the key source that was active when this forward was opened.
        thread: the logical thread that opened the last forward; None before the first.
        number: how many forwards have been opened.
        is_by_hand: whether the open forward was not opened by a call of the model.
    """

    root: Module
    depth: int = 0
    samples: Samples = FIRST
    slices: Slices | None = None
    has_dropped: bool = False
    is_replayed: bool = False
    is_compiled: bool = False
    is_parallel: bool = False
    is_released: bool = False
    outer: Any = None
    thread: int | None = None
    number: int = 0
    is_by_hand: bool = False

    @property
    def is_here(self) -> bool:
        """Return whether this thread opened the last run, or works for the thread that did."""
        return self.thread == logical_thread.number

    def claim(self, region: Any = None) -> None:
        """Take the model for this thread until `give_up`.

        Args:
            region: the state from which a region of a forward is run again; None for a forward.

        Raises:
            RuntimeError: if another thread has it.
        """
        here = threading.current_thread()
        # One operation on a dictionary, so that of two threads one gets it.
        if vars(self).setdefault("owner", here) is here:
            return
        # Autograd's threads on a GPU run regions of a forward that is open, whose thread waits for them.
        if region is None or not (region.depth and region.number == self.number and self.depth and self.is_here):
            _refuse_thread()

    def give_up(self) -> None:
        """Leave the model to the next thread, unless a recomputation has it to its end, or another thread."""
        if not self.is_replayed and vars(self).get("owner") is threading.current_thread():
            del vars(self)["owner"]

    def check_thread(self) -> None:
        """Refuse a use while another thread runs the model, whose uses would be counted together with this one.

        Raises:
            RuntimeError: if another thread has a forward open.
        """
        if self.depth and not self.is_here:
            _refuse_thread()

    @abstractmethod
    def snapshot(self) -> Any:
        """Return the state with which a region of the forward begins."""

    @abstractmethod
    def refuse_tracer(self) -> None:
        """Refuse tracing in training mode, which would keep this step's keys."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Return to a state."""

    @abstractmethod
    def replayed(self, state: Any) -> AbstractContextManager[None]:
        """Run a region again from the state that it began with."""


def _refuse_thread() -> NoReturn:
    raise RuntimeError(
        "the pinned model is used while another thread runs it, so that no use has a number of its own; run it in one "
        "thread at a time, or give each thread a copy: copy.deepcopy(model) is pinned on its own"
    )


def raise_now(message: str) -> NoReturn:
    """Raise a RuntimeError. Compilers run this while they trace, since their own account may leave out the message."""
    raise RuntimeError(message)
