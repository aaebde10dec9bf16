"""What compilers are told, once a model is pinned; before that nobody need load them."""

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
    """Leave a model's hooks alone, and run what makes a site instead of following it.

    What opens and closes a forward does nothing with tensors, and what it counts would be constants of a program: a
    compiler that meets it inside of a function breaks its graph there. A path is hashed, which none can follow.
    """
    Forward.open_by_hook = torch.compiler.disable(Forward.open_by_hook)  # type: ignore[method-assign]
    Forward.close_by_hook = torch.compiler.disable(Forward.close_by_hook)  # type: ignore[method-assign]
    torch.compiler.assume_constant_result(_sites._make)  # marks it
    for hook in (Forward.before, Forward.after, Forward.enter, Forward.leave, Enter.__call__, Leave.__call__):
        _not_by_itself(hook)


def _not_by_itself(function: Any) -> None:
    """Run a function uncompiled where it is met by itself, as hooks of a compiled module are, and follow it elsewhere.

    Torch has no public word for that: `disable` would break the graphs of those that call it. Without this the hooks
    of every module are programs of their own, and a stack of blocks reaches the limit of recompilations.
    """
    eval_frame: Any = importlib.import_module("torch._C._dynamo.eval_frame")
    if hasattr(eval_frame, "set_code_exec_strategy"):
        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    else:  # torch 2.6
        eval_frame.skip_code(function.__code__)
