"""State that a forward changes: modes, buffers, random generators and pinned models, saved and restored."""

from __future__ import annotations

import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

__all__ = [
    "SharedContext",
    "Stateful",
    "generators_restored",
    "live_forwards",
    "logical_thread",
    "opening",
    "opens_watched",
    "register",
    "restorations",
    "registry_lock",
    "uncompiled",
    "unregister",
]


class Stateful(Protocol):
    """Forward of a pinned model, whose state each run changes."""

    depth: int
    """Number of nested opens; 0 outside of a run."""
    thread: int | None
    """The logical thread that opened the last run; None before the first."""

    def snapshot(self) -> Any:
        """Return the present state."""

    def restore(self, state: Any) -> None:
        """Return to a state."""


registry_lock = threading.RLock()
"""Guards the registry of forwards; reentrant, because a collected forward unregisters wherever it is collected."""
_forwards: weakref.WeakSet[Any] = weakref.WeakSet()


def register(forward: Stateful) -> None:
    """Add a forward to the registry."""
    with registry_lock:
        _forwards.add(forward)


def unregister(forward: Stateful) -> None:
    """Remove a forward from the registry."""
    with registry_lock:
        _forwards.discard(forward)


def live_forwards() -> list[Any]:
    """Return the forwards of all pinned models."""
    with registry_lock:
        return list(_forwards)


class _LogicalThread(threading.local):
    """State of the thread whose work is being done.

    Autograd may recompute a forward in a thread of its own, which then works for the thread that ran the forward.

    Attributes:
        number: the thread's number.
        watchers: functions that are called with each forward before it opens.
    """

    def __init__(self) -> None:
        self.number = threading.get_ident()
        self.watchers: list[Callable[[Any], None]] = []


logical_thread = _LogicalThread()


def opening(forward: Stateful) -> None:
    """Announce that this thread is about to run a forward, to whoever restores its state later."""
    for watcher in logical_thread.watchers:
        watcher(forward)


@contextmanager
def opens_watched(watcher: Callable[[Any], None]) -> Iterator[None]:
    """Call a function with each forward that this thread opens meanwhile.

    So only forwards that really run are restored: those that other threads run stay as they are.
    """
    logical_thread.watchers.append(watcher)
    try:
        yield
    finally:
        logical_thread.watchers.remove(watcher)


_generators_lock = threading.RLock()


class Restorations:
    """Count of the times that threads of this package began or ended to restore the generators.

    Who watches the generators for draws compares it, since another thread's restoration looks like a draw.
    """

    def __init__(self) -> None:
        self._moves: Counter[int] = Counter()
        self._owner: int | None = None

    def begin(self) -> None:
        """Count a restoration that begins; the caller holds the lock of the generators."""
        self._owner = threading.get_ident()
        self._moves[self._owner] += 1

    def end(self, owner: int | None) -> None:
        """Count a restoration that ends, within another one of the thread `owner` or within none."""
        self._moves[threading.get_ident()] += 1
        self._owner = owner

    @property
    def owner(self) -> int | None:
        """Thread that restores the generators at its end, None if none does."""
        return self._owner

    def elsewhere(self) -> int | None:
        """Return the number of beginnings and ends in other threads; None while another thread's is open."""
        here = threading.get_ident()
        if self._owner not in (None, here):
            return None
        return sum(number for thread, number in list(self._moves.items()) if thread != here)


restorations = Restorations()


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the generators of torch, Python and NumPy at the end, whatever happens.

    All threads share these generators, so one restores them at a time. What other threads draw meanwhile they will draw
    again.
    """
    with _generators_lock:
        owner = restorations.owner
        python, numpy = random.getstate(), np.random.get_state()
        restorations.begin()
        try:
            with torch.random.fork_rng(range(torch.cuda.device_count())):  # all, said so that torch does not warn
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            restorations.end(owner)


class SharedContext:
    """Context over something that all threads share: the first to enter changes it, and the last to leave restores it.

    Torch's and Python's own contexts restore what they found, which is wrong where two threads overlap.

    Args:
        change: function that makes the change and returns the function that undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._open = 0
        self._undo: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if not self._open:
                self._undo = self._change()
            self._open += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._undo()


def _force_eager() -> Callable[[], object]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


uncompiled = SharedContext(_force_eager)
"""Context in which compiled functions run as they are written."""
