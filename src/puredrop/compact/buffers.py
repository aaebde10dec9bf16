"""Memory that is used again in the next step, where nobody else has kept it."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

__all__ = ["Memory"]


class Memory:
    """One tensor's room, given out again and again.

    A gradient as large as the weights is fresh memory in each step otherwise, which the system has to find and to
    clear: a third of the time to write it (docs/batchwise.md has the figure).
    """

    def __init__(self) -> None:
        self._storage: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        """A copy has memory of its own."""
        return Memory()

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        """Nothing of it is saved."""
        return Memory, ()

    def tensor(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Contiguous and not set, of a tensor's dtype and device.

        What was given out before is given out again only where no tensor shares its memory any more.
        """
        size = math.prod(shape) * like.element_size()
        with self._lock:
            storage = self._storage
            # 1 is this reference.
            is_free = storage is not None and torch._C._storage_Use_Count(storage._cdata) == 1
            if is_free and storage.device == like.device and storage.nbytes() >= size:
                empty = torch.empty(0, dtype=like.dtype, device=like.device)
                return empty.set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]
            fresh = torch.empty(shape, dtype=like.dtype, device=like.device)
            if storage is None or is_free:
                self._storage = fresh.untyped_storage()
            return fresh
