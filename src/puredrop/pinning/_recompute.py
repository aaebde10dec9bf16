"""Recomputation in backward: each forward that is run again starts from the state of its first run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import fx
from torch.nn import Module
from torch.utils import checkpoint

from puredrop._torch import checkpoint_frame, operator_tracers
from puredrop.inspection.state import (
    live_forwards,
    logical_thread,
    opens_watched,
    register,
    registry_lock,
    unregister,
)
from puredrop.inspection.tracing import Tracer
from puredrop.ops import active
from puredrop.pinning._forward_state import ForwardState

__all__ = ["unwatch_checkpoints", "watch_checkpoints"]

_Function = Callable[..., Any]


def _remembering(function: _Function) -> _Function:
    """Wrap a region's function so that a second run finds the pinned models that it uses as they are now.

    A forward that this thread has open is restored at once: the region is a part of it. The state of every closed
    forward is saved too, since the region may run it, and is restored only if the second run opens it: another thread
    may be using it. A forward that another thread has open is that thread's.
    """
    thread = logical_thread.number
    forwards = live_forwards()
    if not forwards:
        return function
    opened = [(forward, forward.snapshot()) for forward in forwards if forward.depth and forward.thread == thread]
    closed = {forward: forward.snapshot() for forward in forwards if not forward.depth}
    source = active.source

    def rerun(*arguments: Any) -> Any:
        before, active.source = active.source, source
        # CUDA's backward runs in a thread of autograd's, which works for the thread of the first run.
        worker, logical_thread.number = logical_thread.number, thread
        replayed: set[Any] = set()
        try:
            with ExitStack() as stack:

                def replay(forward: Any) -> None:
                    if forward in closed and forward not in replayed:
                        replayed.add(forward)
                        stack.enter_context(forward.replayed(closed[forward]))

                stack.enter_context(opens_watched(replay))
                for forward, state in opened:
                    stack.enter_context(forward.replayed(state))
                for forward in closed:
                    if forward.is_released and forward.thread == thread:  # it announces no opening any more
                        replay(forward)
                return function(*arguments)
        finally:
            active.source = before
            logical_thread.number = worker

    return rerun


class _Patch:
    """Replacement of a function of torch.utils.checkpoint, which calls the function that was there before.

    Args:
        owner: class that holds the function.
        name: name of the function.
        wrap: function from the original and the patch to the replacement.
    """

    def __init__(self, owner: type, name: str, wrap: Callable[[_Function, _Patch], Any]) -> None:
        self.owner, self.name = owner, name
        self.is_on = True
        self._original = vars(owner)[name]
        self._replacement = wrap(getattr(owner, name), self)
        setattr(owner, name, self._replacement)

    def remove(self) -> None:
        """Restore the original, or only switch the patch off if another library has patched the function since."""
        self.is_on = False
        if vars(self.owner)[self.name] is self._replacement:
            setattr(self.owner, self.name, self._original)


def _wrap_frame(original: _Function, patch: _Patch) -> _Function:
    def init(self: Any, recompute_fn: _Function, *arguments: Any, **named: Any) -> None:
        original(self, _remembering(recompute_fn) if patch.is_on else recompute_fn, *arguments, **named)

    return init


def _wrap_function(original: _Function, patch: _Patch) -> Any:
    def forward(ctx: Any, run_function: _Function, *arguments: Any) -> Any:
        rerun = _remembering(run_function) if patch.is_on else run_function
        output = original(ctx, run_function, *arguments)
        ctx.run_function = rerun
        return output

    return staticmethod(forward)


def _wrap_trace(original: _Function, patch: _Patch) -> _Function:
    def trace(self: Any, root: Any, *arguments: Any, **named: Any) -> Any:
        if patch.is_on and isinstance(root, Module):
            refuse_symbols(self, root)
        return original(self, root, *arguments, **named)

    return trace


_patches: list[_Patch] = []


def watch_checkpoints(forward: ForwardState) -> None:
    """Let torch.utils.checkpoint save a model's state with each region, as long as the model is pinned.

    Torch does not announce that a region begins or is run again: its `context_fn` belongs to the user. A recomputation
    that took itself for another use of a site would give a wrong gradient silently. So the two entries of
    torch.utils.checkpoint are patched with the first pinned model, on top of any other patch, and restored with the
    last. So is the entry of torch.fx, which makes of a pinned model one that is not pinned, without a call of it.
    """
    with registry_lock:
        register(forward)
        weakref.finalize(forward, _remove_unused).atexit = False  # for a model that is deleted without being released
        if not _patches:
            frame = checkpoint_frame()
            if frame is not None:
                _patches.append(_Patch(frame, "__init__", _wrap_frame))
            _patches.append(_Patch(checkpoint.CheckpointFunction, "forward", _wrap_function))
            _patches.append(_Patch(fx.Tracer, "trace", _wrap_trace))


def refuse_symbols(tracer: Any, root: Module) -> None:
    """Refuse to trace a module in which a pinned model is.

    Tracers of ours read the layers alone; those of operators run the model, whose hooks refuse them in training mode.

    Raises:
        RuntimeError: if the module is a pinned model or holds one.
    """
    if isinstance(tracer, (Tracer, *operator_tracers())):
        return
    pinned = {id(forward.root) for forward in live_forwards() if not forward.is_released}
    for path, module in root.named_modules():
        if id(module) in pinned:
            raise RuntimeError(
                f"torch.fx traces {type(module).__name__}{f' at {path!r}' if path else ''}, a pinned model, but the "
                "graph module that it makes would not be pinned; trace the model before puredrop.reproducible and pin "
                "the graph module, or call run.release() first"
            )


def unwatch_checkpoints(forward: ForwardState) -> None:
    """Forget a model that is released."""
    unregister(forward)
    _remove_unused()


def _remove_unused() -> None:
    """Remove the patches if no model is pinned."""
    with registry_lock:
        if not live_forwards():
            while _patches:
                _patches.pop().remove()
