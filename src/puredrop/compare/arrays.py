"""Arrays of a user's .npz file, whose sizes are checked before memory is taken for them."""

from __future__ import annotations

import contextlib
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

__all__ = ["copy_npz", "npz_names", "read_npz"]

_COPIED = 1 << 20  # bytes at once
_Kind = tuple[tuple[int, ...], np.dtype[Any]]


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


def copy_npz(path: Path, name: str, least: int, file: BinaryIO) -> _Kind | None:
    """Copy an array's bytes to a file without holding them, so that memory does not grow with the array.

    Args:
        path: a .npz file; errors as `read_npz`.
        name: the array, of `npz_names`.
        least: a smaller array, in bytes, is not copied.
        file: what to write to.

    Returns:
        The array's shape and dtype; None for an array that is small, of no dimension, in columns'
        order or of Python objects: `read_npz` reads it.
    """
    with _opened(path) as arrays:
        entry = _entry(arrays.zip, name)
        if entry is None or entry.file_size < least:
            return None
        _check_size(arrays.zip, name)
        with arrays.zip.open(entry) as source:
            header = _header(source)
            if header is None or not header[0] or header[1] or header[2].hasobject:
                return None
            shutil.copyfileobj(source, file, _COPIED)
            return header[0], header[2]


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


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """Return an array's entry; None for what is no array."""
    for file in (f"{name}.npy", name):
        with contextlib.suppress(KeyError):
            entry = archive.getinfo(file)  # by a dictionary: an archive may have very many
            return entry if file.endswith(".npy") else None
    return None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Return an array's shape, whether its order is that of columns, and its dtype; None for a newer format."""
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        return None
    reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, in_columns, dtype = reader(file)
    return shape, in_columns, dtype


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError if an array's header promises more bytes than there are; NumPy would allocate them all."""
    entry = _entry(archive, name)
    if entry is None:
        return
    with archive.open(entry) as file:
        header = _header(file)
        if header is None:
            return
        shape, _, dtype = header
        promised, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if promised > there and not dtype.hasobject:
        raise ValueError(f"array {name!r} of shape {shape} needs {promised} bytes, but the file holds {there}")
