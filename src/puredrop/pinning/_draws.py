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
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from puredrop.functional.interception import recognise
from puredrop.inspection.callers import calling_line, is_users, place
from puredrop.inspection.outside import DrawTracer, Generators
from puredrop.inspection.state import restorations
from puredrop.inspection.watch import positions
from puredrop.ops import transparent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DrawWatch", "Unpinned", "UnpinnedWarning", "forgets_generators", "own_recomputation", "unwatched"]

_CHECKPOINT = str(Path(torch.__file__).parent / "utils" / "checkpoint.py")


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
    """Watch of a forward for draws outside of pinned dropout. It changes no result.

    Draws of torch's generators show at its functions, those of Python's and NumPy's at the lines of the user's code.

    Args:
        root: the model.
        path: function that returns the path of the module that runs.
        add: called with path, kind, place in the user's code, and the name of the function that draws.
    """

    def __init__(self, root: Module, path: Callable[[], str], add: Callable[[str, str, str, str], None]) -> None:
        super().__init__()
        # Read before the positions: a restoration that overlaps with their reading then changes the count after it.
        self._mark = self._first = restorations.elsewhere()
        self._path = path
        self._add = add
        self._outside = Generators(root)
        self._before = self._outside.positions()
        everyone = self._outside.advanced([None] * len(self._before))
        # A debugger or a measurement of coverage traces already; the draws are then found without their lines.
        self._tracer = DrawTracer(everyone, path) if sys.gettrace() is None else None
        self._position = positions()

    def __enter__(self) -> Self:
        # Our operators keep their short way, whose saved tensors a checkpoint counts again in backward.
        transparent.modes += 1
        super().__enter__()
        if self._tracer is not None:
            self._tracer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._note_unseen()
        if self._tracer is not None:
            self._tracer.__exit__(*error)
        super().__exit__(*error)
        transparent.modes -= 1
        if self._first is None or restorations.elsewhere() != self._first:
            return
        draws = () if self._tracer is None else self._tracer.draws
        for draw in draws:
            self._add(draw.path, draw.library, draw.where, draw.library)
        if not draws:
            for generator in self._outside.advanced(self._before):
                library = "python" if hasattr(generator, "getstate") else "numpy"
                self._add("", library, "?", library)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and record it if it draws."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or unwatched.depth:
            return func(*args, **kwargs)
        self._note_unseen()
        transparent.modes -= 1  # torch closes the mode while this method runs
        try:
            output = func(*args, **kwargs)
        finally:
            transparent.modes += 1
        if self._has_drawn() or kwargs.get("generator") is not None:
            call = recognise(func, args, kwargs)
            name = getattr(func, "__name__", str(func)) if call is None else call.kind
            self._add(self._path(), "draw", calling_line() or "?", name.rstrip("_"))
        return output

    def _has_drawn(self) -> bool:
        """Return whether torch's generators have moved since the last call, and no other thread's survey moved them."""
        mark, position = self._mark, self._position
        self._mark = restorations.elsewhere()
        self._position = positions()
        return self._position != position and mark is not None and mark == restorations.elsewhere()

    def _note_unseen(self) -> None:
        """Record a draw of torch's generators since the last call, out of sight."""
        if self._has_drawn():
            self._add(self._path(), "draw", calling_line() or "?", "something out of sight")


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


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
            if not is_users(frame.f_code.co_filename):
                return None
            name = type(first).__name__.removesuffix("Backward")
            return name, place(frame.f_code.co_filename, frame.f_code.co_firstlineno)
    return None
