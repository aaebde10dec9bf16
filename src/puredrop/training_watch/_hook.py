"""The hook of a watched model: one call before each of its forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from puredrop._torch import is_exporting, skip_alone

__all__ = ["ForwardHook", "tell_compilers"]


class NoHook:
    """Hook that does nothing: what a copy of a watched model has in place of the watch."""

    def __call__(self, module: Module, inputs: tuple[Any, ...]) -> None:
        """Do nothing."""


class ForwardHook:
    """Hook that tells a watch of each forward.

    Compiled code has only the traced branch in it. It stores values that are constants of the program and reads no
    state that changes, so that it is compiled once for each mode, as the model is.

    Args:
        tell: function that the hook calls before a forward that is not traced.

    Attributes:
        pairs: module and name of the rate of each site.
        traced_training: which sites drop in the last compiled forward with gradients, None if there was none.
        traced_evaluation: the same of the last compiled forward without gradients.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.pairs: list[tuple[Module, str]] = []
        self.traced_training: tuple[bool, ...] | None = None
        self.traced_evaluation: tuple[bool, ...] | None = None

    def __call__(self, module: Module, inputs: tuple[Any, ...]) -> None:
        """Tell the watch, or leave what the compiler should tell later."""
        if not torch.compiler.is_compiling():
            self._tell()
        elif torch.compiler.is_dynamo_compiling() and not is_exporting():
            flags: tuple[bool, ...] = ()
            for site, name in self.pairs:
                rate = getattr(site, name)
                # A rate that is a tensor is on a schedule; asking its value would break the graph.
                flags += (site.training and (isinstance(rate, torch.Tensor) or rate != 0),)
            if torch.is_grad_enabled():
                self.traced_training = flags
            else:  # compilers cannot tell inference mode from no_grad
                self.traced_evaluation = flags

    def take_traced(self) -> list[tuple[str, tuple[bool, ...]]]:
        """Return what compiled forwards left since the last call, by "evaluation" and "training"."""
        if self.traced_training is None and self.traced_evaluation is None:
            return []
        traced = {"evaluation": self.traced_evaluation, "training": self.traced_training}
        self.traced_training = self.traced_evaluation = None
        return [(name, flags) for name, flags in traced.items() if flags is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a hook that does nothing: a copy of the model, such as an EMA's, is not watched."""
        return NoHook, ()


@functools.cache
def tell_compilers() -> None:
    """Let the hook of a compiled model run as it is, outside of the program."""
    skip_alone(ForwardHook.__call__)
    skip_alone(NoHook.__call__)
