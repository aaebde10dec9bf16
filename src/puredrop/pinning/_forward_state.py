"""State of a pinned model's forward, as its sites read it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from torch import Tensor
from torch.nn import Module

from puredrop.inspection.frames import Frame
from puredrop.inspection.state import logical_thread
from puredrop.ops import PACKED, KeySource, Place
from puredrop.pinning._batches import Tally
from puredrop.pinning._mapping import Slices
from puredrop.pinning._placement import refusal
from puredrop.pinning._samples import FIRST, Layout, Samples

__all__ = ["ForwardState", "Observer", "State", "raise_now"]


class State(NamedTuple):
    """State from which a recomputation starts."""

    step: int
    tally: Tally
    ids: tuple[Tensor | None, bool]
    samples: Samples
    depth: int
    uses: dict[Any, int]
    frames: list[Frame]
    outer: Any
    number: int


class Observer(ABC):
    """Abstract: an observer of a pinned model's forwards, which sees each use of a site until it has seen enough."""

    def begin(self, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: B027
        """Begin to watch a call of the model."""

    def leave(self, depth: int) -> None:  # noqa: B027
        """Stop watching at the end of the call that began at this depth; 0 ends the forward."""

    def abandon(self) -> None:  # noqa: B027
        """Forget a forward that failed."""

    def conclude(self, forward: Any) -> None:  # noqa: B027
        """Judge a forward that succeeded."""

    @abstractmethod
    def note(self, forward: Any, kind: str, input: Tensor, place: Place, layout: Layout, call: int) -> Any:
        """Record a use of a site; return what answers in place of its key, or None."""


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
        examination: the examination of the first training forward, and what it found; None for a copy under trial.
        observer: who watches the first training forward; None once it has been judged.
        refused: error by (path, sample dimension) of the sites whose samples lie elsewhere.
        refuses_all: whether compiled code hides the use of a refused site, so that the whole forward is refused.
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
    examination: Any = None
    observer: Observer | None = None
    refused: Mapping[tuple[str, int | None], str] = MappingProxyType({})
    refuses_all: bool = False
    _frames: list[Frame]

    @property
    def path(self) -> str:
        """Path of the module that runs."""
        return self._frames[-1].path if self._frames else ""

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

    def check_placement(self, layout: Layout, shape: Any) -> None:
        """Refuse a site whose samples lie elsewhere in a forward that is a part of its step.

        Raises:
            ValueError: if a trial has shown that they do.
        """
        reason = self.refused.get((layout.path, layout.sample_dim))
        if reason is not None and layout.sample_dim != PACKED:
            raise ValueError(refusal(layout.path, shape, self.samples.count, layout.sample_dim, reason))

    def check_placements(self) -> None:
        """Refuse all such sites where compiled code hides their use."""
        if not self.samples.are_whole:
            for path, dim in self.refused:
                self.check_placement(Layout(path, dim), ())

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
