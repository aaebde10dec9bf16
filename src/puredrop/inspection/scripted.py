"""Operators of TorchScript modules that drop or draw random numbers, read from their graphs."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from puredrop.inspection.frames import FrameStack

__all__ = ["ScriptedFrames", "random_operators"]

_RANDOM = re.compile(
    r"^aten::(\w*dropout\w*|bernoulli\w*|rand\w*|normal\w*|uniform_?|multinomial|exponential_?|rrelu\w*)$"
)
_MOST = 3


def random_operators(module: ScriptModule) -> list[str]:
    """Return the operators of a TorchScript module that draw random numbers, each with its place and rate if known.

    Args:
        module: a scripted or traced module.
    """
    try:
        nodes = list(module.inlined_graph.nodes())
    except RuntimeError:  # a module without a forward
        return []
    found = []
    while nodes:
        node = nodes.pop(0)
        nodes = [inner for block in node.blocks() for inner in block.nodes()] + nodes
        if _RANDOM.match(node.kind()):
            found.append(_described(node))
    return found if len(found) <= _MOST else [*found[:_MOST], f"{len(found) - _MOST} more"]


def _described(node: Any) -> str:
    """Return an operator's name, with the module around it and its rate where the graph tells them."""
    scope = node.scopeName().rpartition("/")[2].partition("__module")[2].lstrip(".")
    rates = [value.toIValue() for value in list(node.inputs())[1:]]
    rate = next((f" p={value:g}" for value in rates if isinstance(value, float)), "")
    return str(node.kind()).replace("aten::", "") + rate + (f" in {scope}" if scope else "")


class ScriptedFrames:
    """Hooks that push and pop frames for calls of TorchScript modules, which take no hooks of their own.

    Args:
        modules: the TorchScript modules by their paths.
    """

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self._paths = {id(module): path for path, module in modules.items()}
        self._handles: list[Any] = []

    def put_on(self, stack: FrameStack) -> None:
        """Register hooks for all modules of the process, which act in this thread and on these modules alone."""
        if not self._paths:
            return
        here = threading.get_ident()

        def enter(module: Module, inputs: Any) -> None:
            if id(module) in self._paths and threading.get_ident() == here:
                stack.enter(self._paths[id(module)], False, module, inputs)

        def leave(module: Module, inputs: Any, output: Any) -> None:
            if id(module) in self._paths and threading.get_ident() == here:
                stack.leave()

        self._handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]

    def take_off(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()
