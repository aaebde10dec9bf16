"""Arrays of a user's .npz file, whose sizes are checked before memory is taken for them."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

__all__ = ["npz_names", "read_npz"]


def npz_names(path: Path) -> tuple[str, ...]:
    """Return the names of an archive's arrays; errors as `read_npz`."""
    with _opened(path) as arrays:
        return tuple(arrays.files)


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return arrays of an archive by name.

    Args:
        path: a .npz file.
        names: the arrays to read, of `npz_names`.

    Raises:
        ValueError: if the file is no whole archive of arrays without Python objects, or too large for the memory; the
            message is one line that names the file.
        OSError: if it cannot be opened.
    """
    with _opened(path) as arrays:
        for name in names:
            _check_size(arrays.zip, name)
        return {name: arrays[name] for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:  # NumPy leaves the file of a broken archive open
            arrays = np.load(file, allow_pickle=False)
            if not hasattr(arrays, "files"):
                raise ValueError("one array; expected an archive of named arrays, as numpy.savez writes")
            with arrays:
                yield arrays
    except MemoryError as error:
        raise ValueError(f"{path}: too large for the memory of this machine ({error})") from error
    # What zipfile and NumPy raise for a broken, encrypted or unknown kind of archive.
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError if an array's header promises more bytes than there are; NumPy would allocate them all."""
    entry = next((entry for entry in archive.infolist() if entry.filename in (name, f"{name}.npy")), None)
    if entry is None or not entry.filename.endswith(".npy"):
        return
    with archive.open(entry) as file:
        version = npy_format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return
        reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, _, dtype = reader(file)
        promised, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if promised > there and not dtype.hasobject:
        raise ValueError(f"array {name!r} of shape {shape} needs {promised} bytes, but the file holds {there}")
