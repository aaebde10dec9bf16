"""Tracer of torch.fx that other threads do not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.nn import Module

from puredrop._torch import show_no_tracing

__all__ = ["Tracer"]

_lock = threading.RLock()


class Tracer(fx.Tracer):
    """A torch.fx tracer for one thread.

    While torch.fx traces, it replaces methods of `torch.nn.Module` in the whole process: a model that another thread
    calls would be traced, too, and a second tracer would never restore them. So one traces at
    a time, and what other threads call runs as ever.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a forward."""
        with _lock:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    @property
    def root(self) -> Any:
        """The module that is traced."""
        return self._root

    @root.setter
    def root(self, module: Any) -> None:
        # Torch sets this first of all after its flag, which is one for all threads up to 2.14.
        show_no_tracing()
        self._root = module

    def call_module(self, m: Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a module's call, or run it for another thread."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record that a module's attribute is read, or read it for another thread."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
