"""Watch of one forward for random draws that no key reaches, and for recomputation that nobody announces."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from puredrop.functional.interception import recognise
from puredrop.inspection import outside_positions
from puredrop.inspection.state import restorations
from puredrop.inspection.watch import positions
from puredrop.ops import transparent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DrawWatch", "Unpinned", "UnpinnedWarning", "caller", "forgets_generators", "own_recomputation", "unwatched"]

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
_CHECKPOINT = str(Path(_TORCH) / "utils" / "checkpoint.py")


class UnpinnedWarning(UserWarning):
    """Warning that a pinned model holds something whose outcome does not follow from the seed."""


@dataclass(frozen=True)
class Unpinned:
    """A place of a pinned model that is not pinned.

    Args:
        path: path of the module around it.
        kind: "draw" for random numbers of torch's generators, "python" and "numpy" for theirs, "layer" for a layer of
            another library, "recomputation" for a forward that something else than torch.utils.checkpoint runs again.
        where: "file:line" of the user's code, or "?".
        reason: what happens there, and the likely fix.
    """

    path: str
    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where != "?" else ""
        return f"{self.path or '(model)'}{place}: {self.reason}"


class _Unwatched(threading.local):
    """Number of this thread's trials that are running, in which the watch of an outer model sees nothing."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


unwatched = _Unwatched()


class DrawWatch(TorchFunctionMode):
    """Watch of torch's functions for draws outside of pinned dropout. It changes no result.

    Args:
        path: function that returns the path of the module that runs.
        add: called with path, kind, place in the user's code, and the name of the function that draws.
    """

    def __init__(self, path: Callable[[], str], add: Callable[[str, str, str, str], None]) -> None:
        super().__init__()
        self._path = path
        self._add = add
        self._torch = positions()
        self._outside = outside_positions()
        self._mark = restorations.mark()

    def __enter__(self) -> Self:
        # Our operators keep their short way, whose saved tensors a checkpoint counts again in backward.
        transparent.modes += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        transparent.modes -= 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and record it if it draws."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or unwatched.depth:
            return func(*args, **kwargs)
        self.check()
        transparent.modes -= 1  # torch closes the mode while this method runs
        try:
            output = func(*args, **kwargs)
        finally:
            transparent.modes += 1
        now, is_alone = positions(), self._is_alone()
        if (now != self._torch and is_alone) or kwargs.get("generator") is not None:
            call = recognise(func, args, kwargs)
            name = getattr(func, "__name__", str(func)) if call is None else call.kind
            self._add(self._path(), "draw", caller(), name.rstrip("_"))
        self._torch = now
        return output

    def _is_alone(self) -> bool:
        """Return whether no other thread's survey of a model has moved the generators since the last call."""
        mark, self._mark = self._mark, restorations.mark()
        return mark == self._mark and not restorations.open

    def check(self) -> None:
        """Record draws since the last call: by Python's and NumPy's generators, or out of sight."""
        outside, now = outside_positions(), positions()
        if self._is_alone():
            if outside[0] != self._outside[0]:
                self._add(self._path(), "python", caller(), "random")
            if outside[1:] != self._outside[1:]:
                self._add(self._path(), "numpy", caller(), "numpy.random")
            if now != self._torch:
                self._add(self._path(), "draw", caller(), "something out of sight")
        self._torch, self._outside = now, outside


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def caller() -> str:
    """Return file and line of the user's code that runs."""
    for frame in _stack():
        name = frame.f_code.co_filename
        if name.startswith((_TORCH, _HERE, "<frozen")):
            continue
        path = Path(name)
        if "site-packages" in path.parts:
            name = str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
        else:
            name = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
        return f"{name}:{frame.f_lineno}"
    return "?"


def forgets_generators() -> bool:
    """Return whether torch.utils.checkpoint surrounds the running code without preserving the generators."""
    return any(
        frame.f_code.co_filename == _CHECKPOINT
        and False in (frame.f_locals.get("preserve"), frame.f_locals.get("preserve_rng_state"))
        for frame in _stack()
    )


def own_recomputation() -> tuple[str, str] | None:
    """Return the name and place of the autograd Function that runs this code, unless it is torch's checkpoint."""
    for frame in _stack():
        if frame.f_code.co_name != "forward" or frame.f_code.co_argcount == 0:
            continue
        first = frame.f_locals.get(frame.f_code.co_varnames[0])
        if isinstance(first, torch.autograd.function.FunctionCtx):
            if frame.f_code.co_filename.startswith((_TORCH, _HERE)):
                return None
            name = type(first).__name__.removesuffix("Backward")
            return name, f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_firstlineno}"
    return None
