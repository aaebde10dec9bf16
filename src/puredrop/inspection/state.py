"""State that a forward changes: modes, buffers, random generators and pinned models, saved and restored."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import Module

__all__ = [
    "Stateful",
    "live_forwards",
    "logical_thread",
    "opening",
    "opens_watched",
    "register",
    "registry_lock",
    "restored",
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


@contextmanager
def restored(model: Module) -> Iterator[None]:
    """Restore modes, buffers, generators and the pinned models that run meanwhile, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    python, numpy = random.getstate(), np.random.get_state()
    here = logical_thread.number
    states = {forward: forward.snapshot() for forward in live_forwards() if forward.depth and forward.thread == here}

    def save(forward: Any) -> None:
        if forward not in states:
            states[forward] = forward.snapshot()

    try:
        with torch.random.fork_rng(), opens_watched(save):
            yield
    finally:
        for forward, state in states.items():
            forward.restore(state)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))  # the forward may have put another tensor there
