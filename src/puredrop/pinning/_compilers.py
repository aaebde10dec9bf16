"""Marks for torch's compiler on the functions of pinned models, set with the first pin."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from puredrop.pinning import _sites
from puredrop.pinning._forward import Forward
from puredrop.pinning._hooks import Enter, Leave

__all__ = ["tell_compilers"]


@functools.cache
def tell_compilers() -> None:
    """Keep the compiler out of a model's hooks, and let it run, not trace, the function that makes a site.

    Opening and closing a forward touches no tensor, and its counters would become constants of the program, so the
    graph breaks there. Making a site hashes its path, which no compiler can trace.
    """
    Forward.open_by_hook = torch.compiler.disable(Forward.open_by_hook)  # type: ignore[method-assign]
    Forward.close_by_hook = torch.compiler.disable(Forward.close_by_hook)  # type: ignore[method-assign]
    torch.compiler.assume_constant_result(_sites._make)  # marks the function
    for hook in (Forward.before, Forward.after, Forward.enter, Forward.leave, Enter.__call__, Leave.__call__):
        _not_by_itself(hook)


def _not_by_itself(function: Any) -> None:
    """Run a function uncompiled if it is called alone, as hooks of a compiled module are; trace it elsewhere.

    Torch has no public function for that: `disable` would break the graphs of the callers. Without it, the hooks of
    every module become programs of their own, and a stack of blocks reaches the limit of recompilations.
    """
    eval_frame: Any = importlib.import_module("torch._C._dynamo.eval_frame")
    if hasattr(eval_frame, "set_code_exec_strategy"):
        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    else:  # torch 2.6
        eval_frame.skip_code(function.__code__)
