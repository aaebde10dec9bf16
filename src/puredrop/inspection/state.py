"""State that a forward changes: modes, buffers, random generators and pinned models, saved and restored."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import Module

__all__ = ["Stateful", "logical_thread", "restored", "stateful"]


class Stateful(Protocol):
    """Object whose state a forward changes."""

    thread: int | None
    """The logical thread that ran the last forward; None before the first."""

    def snapshot(self) -> Any:
        """Return the present state."""

    def restore(self, state: Any) -> None:
        """Return to a state."""


stateful: weakref.WeakSet[Any] = weakref.WeakSet()
"""All live `Stateful` objects: the forwards of pinned models."""


class _LogicalThread(threading.local):
    """Number of the thread whose work is being done.

    Autograd may recompute a forward in a thread of its own, which then works for the thread that ran the forward.
    """

    def __init__(self) -> None:
        self.number = threading.get_ident()


logical_thread = _LogicalThread()


@contextmanager
def restored(model: Module) -> Iterator[None]:
    """Restore modes, buffers, generators and this thread's pinned models at the end, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    python, numpy = random.getstate(), np.random.get_state()
    # A forward that another thread runs meanwhile is that thread's business.
    states = [(item, item.snapshot()) for item in stateful if item.thread in (None, logical_thread.number)]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for item, state in states:
            if item.thread == logical_thread.number:
                item.restore(state)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))  # the forward may have put another tensor there
