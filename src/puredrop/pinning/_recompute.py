"""Forwards that are run again in backward: each starts from the state in which it was run first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils import checkpoint

from puredrop.inspection.state import kept_too
from puredrop.ops import active
from puredrop.pinning._moment import ForwardState

__all__ = ["in_backward", "watch_checkpoints"]

in_backward = torch._C._current_graph_task_id
"""Number of the backward that is being run, -1 for none."""

_Function = Callable[..., Any]


def _remembering(function: _Function) -> _Function:
    """A region's function that, when it is run again, finds every pinned model as it is now."""
    states = [(forward, forward.snapshot()) for forward in kept_too]
    source = active.source
    if not states:
        return function

    def again(*arguments: Any) -> Any:
        before, active.source = active.source, source
        try:
            with ExitStack() as stack:
                for forward, state in states:
                    stack.enter_context(forward.replayed(state))
                return function(*arguments)
        finally:
            active.source = before

    return again


_init: _Function = checkpoint._CheckpointFrame.__init__
_forward: _Function = checkpoint.CheckpointFunction.forward


def _remembering_init(self: Any, recompute_fn: _Function, *rest: Any, **named: Any) -> None:
    _init(self, _remembering(recompute_fn), *rest, **named)


def _remembering_forward(ctx: Any, run_function: _Function, *rest: Any) -> Any:
    again = _remembering(run_function)
    output = _forward(ctx, run_function, *rest)
    ctx.run_function = again
    return output


def watch_checkpoints(forward: ForwardState) -> None:
    """Have torch.utils.checkpoint remember a model's state with each region, as long as there is the model.

    Torch tells nobody that a region begins or is run again: its `context_fn` belongs to the user. A recomputation that
    took itself for another use of a site would give a wrong gradient without a word, so its two entries are wrapped,
    once for the process; where no model is pinned they do what they did.
    """
    kept_too.add(forward)
    checkpoint._CheckpointFrame.__init__ = _remembering_init  # type: ignore[method-assign]
    checkpoint.CheckpointFunction.forward = staticmethod(_remembering_forward)  # type: ignore[method-assign]
