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

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Return the symbols of a forward's arguments; torch calls this first."""
        show_no_tracing()
        return super().create_args_for_root(root_fn, is_module, concrete_args)

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
