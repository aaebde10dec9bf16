"""Progress of a check of many files: a line on stderr that is rewritten on a terminal, and repeated elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType

__all__ = ["CheckProgress"]

_PATIENCE, _REWRITTEN, _REPEATED = 2.0, 0.1, 5.0
"""Seconds before the first line, and between lines on a terminal and elsewhere."""


class CheckProgress:
    """Context that counts files on stderr, where they take longer than two seconds.

    >>> with CheckProgress() as progress:
    ...     progress(1, 2)
    """

    def __init__(self) -> None:
        self._next = time.monotonic() + _PATIENCE
        self._shown = ""

    def __call__(self, done: int, count: int) -> None:
        """Say how many files are done, unless that was said just now."""
        now = time.monotonic()
        if now < self._next:
            return
        is_terminal = _is_terminal()
        self._next = now + (_REWRITTEN if is_terminal else _REPEATED)
        text = f"checked {done:,} of {count:,} files that may drop"
        self._write(f"\r{text.ljust(len(self._shown))}" if is_terminal else f"{text}\n")
        self._shown = text if is_terminal else ""

    def __enter__(self) -> CheckProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write(f"\r{' ' * len(self._shown)}\r")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
            if sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False
