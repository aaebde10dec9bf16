"""Hooks that record which module runs, on modules that may call functional dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from puredrop._torch import remove_hooks

__all__ = ["Enter", "Hooks", "Leave", "may_call"]

# Of these none but the sites among them call a function that drops.
_SILENT = ("torch.nn.", "puredrop.nn.")


def may_call(module: Module) -> bool:
    """Whether a module's forward may drop by calling a function, as far as its class tells."""
    # Its ancestors too: parametrized modules, and those of FSDP, have a class made by torch.
    classes = type(module).__mro__[:-1]
    return not (
        isinstance(module, torch.jit.ScriptModule) or all(kind.__module__.startswith(_SILENT) for kind in classes)
    )


class Enter:
    """Before a module's forward.

    Args:
        forward: what is told.
        path: the module's.
        is_site: whether it is a site itself.
    """

    def __init__(self, forward: Any, path: str, is_site: bool) -> None:
        self.forward = forward
        self.path = path
        self.is_site = is_site

    def __call__(self, *_: Any) -> None:
        self.forward.enter(self.path, self.is_site)


class Leave:
    """After it, whatever happened."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *_: Any) -> None:
        self.forward.leave()


class Hooks:
    """The hooks of one pinned model, put on and taken off together.

    Args:
        modules: module, path and whether it is a site.
    """

    def __init__(self, modules: list[tuple[Module, str, bool]]) -> None:
        self.modules = modules
        self.are_on = False

    def put_on(self, forward: Any) -> None:
        """Have the forward told."""
        self.are_on = True
        for module, path, is_site in self.modules:
            module.register_forward_pre_hook(Enter(forward, path, is_site), prepend=True)
            module.register_forward_hook(Leave(forward), always_call=True)

    def take_off(self, forward: Any) -> None:
        """Leave the modules as they were; found by what they are, since copies have them too."""
        self.are_on = False
        for module, _, _ in self.modules:
            remove_hooks(module, lambda hook: isinstance(hook, (Enter, Leave)) and hook.forward is forward)
