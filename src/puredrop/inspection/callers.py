"""Places in the user's code from which a call comes, found on the stack of the running code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

__all__ = ["calling_frames", "calling_line", "is_from_puredrop", "is_users", "is_within", "place"]

_TORCH, _PUREDROP = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
_INSPECTION = str(Path(__file__).parent)
_WATCHING = frozenset(str(Path(__file__).with_name(f"{name}.py")) for name in ("callers", "frames", "outside", "watch"))
"""Files whose code stands between the user's code and a watch."""


def is_within(name: str, folder: str) -> bool:
    """Return whether a file lies in a folder; a folder whose name only begins alike is another."""
    return name.startswith(folder.rstrip(os.sep) + os.sep)


@functools.lru_cache(maxsize=4096)
def is_users(name: str) -> bool:
    """Return whether a file is the user's, which is neither torch's nor this package's."""
    return not (name.startswith("<") or is_within(name, _TORCH) or is_within(name, _PUREDROP))


def _frames() -> Iterator[FrameType]:
    """Yield the frames of the running code, innermost first, without those of watches."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename not in _WATCHING and frame.f_code.co_name != "__torch_function__":
            yield frame
        frame = frame.f_back


def is_from_puredrop() -> bool:
    """Return whether a call comes from this package, which draws its keys from torch's generator."""
    names = (frame.f_code.co_filename for frame in _frames())
    first = next((name for name in names if not is_within(name, _TORCH)), "")
    return is_within(first, _PUREDROP) and not is_within(first, _INSPECTION)


def calling_frames() -> Iterator[FrameType]:
    """Yield the frames of the user's code that led here, innermost first, up to the call of puredrop."""
    for frame in _frames():
        if is_within(frame.f_code.co_filename, _INSPECTION):
            return
        if is_users(frame.f_code.co_filename):
            yield frame


def calling_line() -> str | None:
    """Return "file:line" of the user's code that led here; None if there is none below the call of puredrop."""
    frame = next(calling_frames(), None)
    return None if frame is None else place(frame.f_code.co_filename, frame.f_lineno)


def place(name: str, line: int) -> str:
    """Return "file:line", with the file's path within its package or below the working folder, or its name."""
    path = Path(name)
    if "site-packages" in path.parts:
        short = str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    else:
        short = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return f"{short}:{line}"
