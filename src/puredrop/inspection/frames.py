"""The stack of modules that run: frames with counts of calls, and the hooks that push and pop them.

Watching, pinned models and members of an ensemble all use these.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import torch
from torch.nn import Module

from puredrop._torch import remove_hooks

__all__ = ["Enter", "Frame", "FrameStack", "Hooks", "Leave", "may_call"]

_SILENT = ("torch.nn.", "puredrop.nn.")
"""Packages whose modules call no functional dropout, except those that are sites themselves."""


def may_call(module: Module) -> bool:
    """Return whether a module's forward may call functional dropout, as far as its class tells."""
    # All ancestors are asked, because parametrized modules and those of FSDP have a class that torch makes.
    classes = type(module).__mro__[:-1]
    return not (
        isinstance(module, torch.jit.ScriptModule) or all(kind.__module__.startswith(_SILENT) for kind in classes)
    )


class Frame:
    """A module that runs.

    Args:
        path: path of the module.
        site: the site or visit that the module is; None if calls in it are sites of their own.
        counts: number of calls so far, by kind.
    """

    def __init__(self, path: str, site: Any = None, counts: dict[Hashable, int] | None = None) -> None:
        self.path = path
        self.site = site
        self.counts: dict[Hashable, int] = {} if counts is None else counts

    def count(self, kind: Hashable) -> int:
        """Count a call, and return the number of earlier calls of its kind."""
        earlier = self.counts.get(kind, 0)
        self.counts[kind] = earlier + 1
        return earlier

    def copy(self) -> Frame:
        """Return a copy whose counts go on separately."""
        return Frame(self.path, self.site, dict(self.counts))


class FrameStack(Protocol):
    """Object that keeps the frames of the modules that run."""

    def enter(self, path: str, is_site: bool, module: Module, inputs: tuple[Any, ...]) -> None:
        """Push the frame of a module that begins."""

    def leave(self) -> None:
        """Pop the frame of the module that has returned or failed."""


class Enter:
    """Hook that pushes a module's frame before its forward.

    An object instead of a closure, because pinned models are copied with their hooks, and compilers trace it.

    Args:
        stack: the stack of frames.
        path: path of the module.
        is_site: whether the module is a site itself.
    """

    def __init__(self, stack: FrameStack, path: str, is_site: bool) -> None:
        self.stack = stack
        self.path = path
        self.is_site = is_site

    def __call__(self, module: Module, inputs: tuple[Any, ...]) -> None:
        """Push the frame."""
        self.stack.enter(self.path, self.is_site, module, inputs)


class Leave:
    """Hook that pops a module's frame after its forward, also after an error.

    Args:
        stack: the stack of frames.
    """

    def __init__(self, stack: FrameStack) -> None:
        self.stack = stack

    def __call__(self, *_: Any) -> None:
        """Pop the frame."""
        self.stack.leave()


class Hooks:
    """Hooks of one stack of frames, put on and taken off together.

    Args:
        modules: each module with its path and whether it is a site; TorchScript modules, which have no hooks, excluded.
    """

    def __init__(self, modules: list[tuple[Module, str, bool]]) -> None:
        self.modules = modules
        self.are_on = False

    def put_on(self, stack: FrameStack) -> None:
        """Register the hooks for a stack."""
        self.are_on = True
        for module, path, is_site in self.modules:
            module.register_forward_pre_hook(Enter(stack, path, is_site), prepend=True)
            module.register_forward_hook(Leave(stack), always_call=True)

    def take_off(self, stack: FrameStack) -> None:
        """Remove the hooks of a stack; they are found by their stack, since copied modules have no handles."""
        self.are_on = False
        for module, _, _ in self.modules:
            remove_hooks(module, lambda hook: isinstance(hook, (Enter, Leave)) and hook.stack is stack)
