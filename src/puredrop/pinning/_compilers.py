"""Marks for torch's compiler on the functions of pinned models, set with the first pin."""

from __future__ import annotations

import functools

import torch

from puredrop._torch import dynamo_exports, skip_alone
from puredrop.inspection.frames import Enter, Leave
from puredrop.pinning import _sites
from puredrop.pinning._forward import Forward
from puredrop.pinning._forward_state import raise_now

__all__ = ["tell_compilers"]


@functools.cache
def tell_compilers() -> None:
    """Keep the compiler out of a model's hooks, and let it run, not trace, the function that makes a site.

    Opening and closing a forward touches no tensor, and its counters would become constants of the program, so the
    graph breaks there. Making a site hashes its path, which no compiler can trace.
    """
    Forward.open_by_hook = torch.compiler.disable(Forward.open_by_hook)  # type: ignore[method-assign]
    Forward.close_by_hook = torch.compiler.disable(Forward.close_by_hook)  # type: ignore[method-assign]
    for function in (_sites._make, dynamo_exports, raise_now):
        torch.compiler.assume_constant_result(function)  # marks the function: it is run, not traced
    # Else the hooks of every module are programs of their own, and a stack of blocks reaches the limit of compilations.
    for hook in (Forward.before, Forward.after, Forward.enter, Forward.leave, Enter.__call__, Leave.__call__):
        skip_alone(hook)
