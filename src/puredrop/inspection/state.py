"""A model, and the random numbers, as they were."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import Module

__all__ = ["kept_too", "restored"]

kept_too: weakref.WeakSet[Any] = weakref.WeakSet()
"""What else a forward may change: objects with `snapshot()` and `restore(state)`."""


@contextmanager
def restored(model: Module) -> Iterator[None]:
    """Put modes, buffers and every generator back in the end, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python, numpy = random.getstate(), np.random.get_state()
    others = [(other, other.snapshot()) for other in kept_too]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for other, state in others:
            other.restore(state)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)  # a forward may have put another tensor there
