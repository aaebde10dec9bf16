"""Folders that one run at a time writes to, and that a run which fails at its start leaves as they were."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_output_folder", "check_unlocked", "output_folder"]

_TRIES, _PAUSE = 4, 0.05


def check_output_folder(folder: Path, name: str = "--out") -> None:
    """Raise OSError, with one line that names the option, unless a folder can be made or written at a path."""
    said = f"{name} is {str(folder)!r}"
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{said}, but {path} links to {path.readlink()}, which does not exist")
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(f"{said}, but {path} is not writable")
            return
        if path.exists():
            where = "which is a file" if path == folder else f"but {path} is a file"
            raise NotADirectoryError(f"{said}, {where}; expected a folder or a new name")


@contextmanager
def output_folder(folder: Path, output: str = "") -> Iterator[None]:
    """Make a folder and keep every other run out until the block ends.

    When the block raises, the folders that were made here are removed where they are empty. A crash frees the lock.

    Args:
        folder: the folder.
        output: what the user chose as the output, for the message; by default the folder.

    Raises:
        BlockingIOError: if another run is writing there; the message names its process.
        OSError: if the folder cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = None
    try:
        descriptor = _lock(folder, output or str(folder))
        try:
            yield
        finally:
            _delete(folder / ".lock", descriptor)
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_unlocked(folder: Path, output: str = "") -> None:
    """Raise BlockingIOError if another run is writing to a folder; arguments as `output_folder`."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if not _try_lock(descriptor):
            raise _is_locked(descriptor, output or str(folder))
    finally:
        os.close(descriptor)


def _lock(folder: Path, output: str) -> int:
    """Make the folder and its lock file, and return the descriptor that holds the lock until it is closed.

    Nothing is written to a file that was there: it may be a link to another one. A file that a crash has left is
    deleted and made again.
    """
    path = folder / ".lock"
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        is_new = True
        try:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                is_new = False
                descriptor = os.open(path, flags)
        except FileNotFoundError:
            continue  # another run ended just now and removed its file, or the folder that it had made
        try:
            if not _try_lock(descriptor):
                raise _is_locked(descriptor, output)
            if not is_new:
                _delete(path, descriptor)
            elif _is_at(path, descriptor):
                with contextlib.suppress(OSError):  # a full disk: the lock holds without the number
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at a path: another run may have deleted it and made its own."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _delete(path: Path, descriptor: int) -> None:
    """Delete the file of a lock that is held; only its holder does."""
    if _is_at(path, descriptor):
        with contextlib.suppress(OSError):  # the folder may be read-only by now
            path.unlink()


def _is_locked(descriptor: int, output: str) -> BlockingIOError:
    number = os.pread(descriptor, 20, 0).decode(errors="replace")
    process = f" (process {number})" if number.isdecimal() else ""
    return BlockingIOError(f"another run{process} writes to {output}; wait until it ends, or choose another --out")


def _try_lock(descriptor: int) -> bool:
    """Lock a file for this process alone; return whether nobody else has."""
    try:
        import fcntl
    except ImportError:  # a system without it: runs are not kept apart
        return True
    for _ in range(_TRIES):  # `check_unlocked` of another process holds it for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:  # a file system without locks
            return True
        else:
            return True
    return False
