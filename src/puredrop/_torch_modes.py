"""Private names of torch that show what runs a forward, and that run one without data.

A newer or older torch may lack one: its first use then raises an error that names what is missing, or sees less.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module

from puredrop._torch import COMPILED, children, missing

__all__ = ["any_mode", "fake_tensors", "is_compiled"]


def any_mode() -> bool:
    """Return whether a mode of operators is open, such as one that counts them; False where this torch cannot tell."""
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return count is not None and bool(count())


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Give tensors sizes and no data, so that a forward computes nothing; torch logs no operator that fails so."""
    try:
        fakes: Any = importlib.import_module("torch._subclasses.fake_tensor")
        mode = fakes.FakeTensorMode(allow_non_fake_inputs=True)
    except (ImportError, AttributeError):
        raise missing("_subclasses.fake_tensor.FakeTensorMode", "running a forward without data") from None
    logger = logging.getLogger(fakes.__name__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with mode:
            yield
    finally:
        logger.disabled = was_disabled


def is_compiled(module: Module) -> bool:
    """Return whether torch.compile runs this code, or a part of the module."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        # The wrapper of what is compiled holds a callback, that of what is kept from compilation does not.
        if "callback" in code.co_freevars and code.co_filename.endswith("eval_frame.py"):
            return True
        frame = frame.f_back
    return any(
        getattr(part, "_compiled_call_impl", None) is not None or COMPILED in children(part)
        for part in module.modules()
    )
