"""Choice of the backend that draws masks, and its compiled library, loaded at first use."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["WRONG", "Library", "backend", "library"]

WRONG = -1
"""Status of `Library.run` and `Library.panels` for a call that they refused, before anything was written."""


@dataclass(frozen=True)
class Library:
    """Functions of the compiled library (csrc/puredrop.h).

    They trust the addresses and sizes that they are passed. So the files that call them, `ops/_kernel.py` and two of
    `compact`, check every tensor, whoever calls, and no other file passes an address (tests/ops/test_wrong_tensors.py).

    Args:
        run: executes a packed call; returns 0, WRONG, or the status of torch's thread pool if that failed.
        fold_in: (key, data) -> key, all below 2^64.
        panels: executes a packed gather or scatter; returns as `run`.
        list: lists the kept units of a mask; takes addresses.
        isa: the variant in use: "avx512", "avx2", "neon" or "scalar".
    """

    run: Callable[[bytes], int]
    fold_in: Callable[[int, int], int]
    panels: Callable[[bytes], int]
    list: Callable[[int, int, int, int, int, int], None]
    isa: str


@functools.cache
def backend() -> str:
    """Return the name of the backend that draws masks on the CPU.

    It is PUREDROP_BACKEND if that is set, else the fastest one installed, chosen once at first use. Use it to check
    that an installation has the compiled library. Tensors on other devices are served by the reference.

    Returns:
        "cpu", the compiled library, or "reference", plain torch.

    Raises:
        ValueError: if PUREDROP_BACKEND names a backend that this installation lacks.

    >>> backend() in ("cpu", "reference")
    True
    """
    present = ["cpu", "reference"] if _path() else ["reference"]
    forced = os.environ.get("PUREDROP_BACKEND")
    if forced is not None and forced not in present:
        raise ValueError(f"PUREDROP_BACKEND is {forced!r}; this installation has: {', '.join(present)} (or unset it)")
    return forced or present[0]


@functools.cache
def library() -> Library | None:
    """Return the compiled library if it is the backend, else None.

    Raises:
        ValueError: if PUREDROP_BACKEND or PUREDROP_ISA names something that this installation or machine lacks.
        OSError: if the library does not load.
    """
    path = _path()
    if backend() != "cpu" or path is None:
        forced = os.environ.get("PUREDROP_ISA")
        if forced is not None and path is None:
            raise ValueError(f"PUREDROP_ISA is {forced!r}; this installation has no compiled library (unset it)")
        return None
    loaded = ctypes.CDLL(str(path))
    loaded.puredrop_run.argtypes = [ctypes.c_char_p]
    loaded.puredrop_fold_in.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    loaded.puredrop_fold_in.restype = ctypes.c_uint64
    loaded.puredrop_panels.argtypes = [ctypes.c_char_p]
    address, size = ctypes.c_void_p, ctypes.c_int64
    loaded.puredrop_list.argtypes = [address, size, size, address, address, address]
    loaded.puredrop_list.restype = None
    _use_pool(loaded)
    return Library(
        loaded.puredrop_run,
        loaded.puredrop_fold_in,
        loaded.puredrop_panels,
        loaded.puredrop_list,
        _use_variant(loaded),
    )


def _path() -> Path | None:
    """Return the library's path; an editable installation has it in another folder than the sources."""
    folders = sys.modules[__name__.rpartition(".")[0]].__path__
    return next((file for folder in folders for file in Path(folder, "_lib").glob("*puredrop_cpu.*")), None)


def _use_variant(loaded: ctypes.CDLL) -> str:
    """Choose the instruction set, and return its name."""
    loaded.puredrop_variant.restype = ctypes.c_char_p
    loaded.puredrop_use_variant.argtypes = [ctypes.c_char_p]
    present: list[str] = []
    while name := loaded.puredrop_variant(len(present)):
        present.append(name.decode())
    chosen = os.environ.get("PUREDROP_ISA", present[0])
    if loaded.puredrop_use_variant(chosen.encode()):
        raise ValueError(f"PUREDROP_ISA is {chosen!r}; this machine runs: {', '.join(present)} (or unset it)")
    return chosen


def _use_pool(loaded: ctypes.CDLL) -> None:
    """Hand torch's thread pool to the library, which runs on one thread before torch 2.10, where that is impossible."""
    loaded.puredrop_use_pool.argtypes = [ctypes.c_void_p]
    folder = Path(torch.__file__).parent / "lib"
    for path in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib"):
        pool = getattr(ctypes.CDLL(str(path)), "torch_parallel_for", None) if path.exists() else None
        if pool is not None:
            loaded.puredrop_use_pool(ctypes.cast(pool, ctypes.c_void_p))
            # The pool's threads do not exist in a forked child, which would wait for them for ever.
            os.register_at_fork(after_in_child=lambda: loaded.puredrop_use_pool(None))
