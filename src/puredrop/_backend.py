"""Which implementation draws masks, and the compiled library behind the fast one, loaded at first use."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Library", "backend", "library"]


@dataclass(frozen=True)
class Library:
    """The compiled library.

    Args:
        run: takes a call packed as csrc/puredrop.h lays it out; 0, or not where torch's pool failed.
        fold_in: (key, data) -> key, all below 2^64.
        panels: takes a gather or scatter packed as csrc/puredrop.h lays it out; 0, as `run`.
        list: makes lists of what is kept: puredrop_list of csrc/puredrop.h, which takes addresses.
        isa: the variant in use: avx512, avx2, neon or scalar.
    """

    run: Callable[[bytes], int]
    fold_in: Callable[[int, int], int]
    panels: Callable[[bytes], int]
    list: Callable[[int, int, int, int, int, int], None]
    isa: str


@functools.cache
def backend() -> str:
    """The backend that draws masks on the CPU: PUREDROP_BACKEND if set, else the fastest one present.

    Chosen once, at first use; tensors on other devices are served by the reference.

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
    """The compiled library where it is the backend, else None.

    Raises:
        ValueError: as `backend`; if PUREDROP_ISA names an instruction set that the library or the machine lacks.
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
    """Where the library lies; an editable installation has it beside the package's own folder, not in it."""
    folders = sys.modules[__name__.rpartition(".")[0]].__path__
    return next((file for folder in folders for file in Path(folder, "_lib").glob("*puredrop_cpu.*")), None)


def _use_variant(loaded: ctypes.CDLL) -> str:
    loaded.puredrop_variant.restype = ctypes.c_char_p
    present: list[str] = []
    while name := loaded.puredrop_variant(len(present)):
        present.append(name.decode())
    chosen = os.environ.get("PUREDROP_ISA", present[0])
    if loaded.puredrop_use_variant(chosen.encode()):
        raise ValueError(f"PUREDROP_ISA is {chosen!r}; this machine runs: {', '.join(present)} (or unset it)")
    return chosen


def _use_pool(loaded: ctypes.CDLL) -> None:
    """Hand torch's own thread pool to the library; before torch 2.10 there is no way to, and it runs on one thread."""
    loaded.puredrop_use_pool.argtypes = [ctypes.c_void_p]
    folder = Path(torch.__file__).parent / "lib"
    for path in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib"):
        pool = getattr(ctypes.CDLL(str(path)), "torch_parallel_for", None) if path.exists() else None
        if pool is not None:
            loaded.puredrop_use_pool(ctypes.cast(pool, ctypes.c_void_p))
            # The pool's threads do not live on in a forked child, which would wait for them for ever.
            os.register_at_fork(after_in_child=lambda: loaded.puredrop_use_pool(None))
