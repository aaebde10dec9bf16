"""Memory that is reused from step to step."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

from puredrop._torch import is_sole_reference

__all__ = ["Buffer"]


class Buffer:
    """Storage for one tensor, handed out again in every step.

    A gradient as large as the weights is fresh memory in each step otherwise. The system has to find and clear it,
    which takes a third of the time of writing it (docs/batchwise.md).
    """

    def __init__(self) -> None:
        self._storage: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffer:
        """Return an empty buffer: copies do not share storage."""
        return Buffer()

    def __reduce__(self) -> tuple[type[Buffer], tuple[()]]:
        """Pickle an empty buffer."""
        return Buffer, ()

    def tensor(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a contiguous, uninitialised tensor.

        The stored memory is reused only if no tensor refers to it any more.

        Args:
            shape: sizes of the tensor.
            like: a tensor of the wanted dtype and device.
        """
        size = math.prod(shape) * like.element_size()
        with self._lock:
            storage = self._storage
            # A use count of 1 is our own reference.
            is_free = storage is not None and is_sole_reference(storage)
            if is_free and storage.device == like.device and storage.nbytes() >= size:
                empty = torch.empty(0, dtype=like.dtype, device=like.device)
                return empty.set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]
            fresh = torch.empty(shape, dtype=like.dtype, device=like.device)
            if storage is None or is_free:
                self._storage = fresh.untyped_storage()
            return fresh
