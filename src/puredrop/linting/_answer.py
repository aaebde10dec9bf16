"""The tensor that a model answers with, among what its forward returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["answer"]

_NAMES = ("logits", "prediction", "predictions", "preds", "pred", "output", "outputs", "out", "y_hat", "y_pred")
_SIDE = ("loss", "hidden", "attention", "attn", "aux", "weight", "cache", "past", "state", "embed", "feature")
"""Parts of names of what a model returns besides its answer."""


def answer(output: Any) -> Tensor | None:
    """Return the tensor that a loss compares with targets; None if the output does not tell which that is.

    The answer is the only tensor, the first of a tuple after losses, or the one whose name says so. Hidden states,
    attention weights and losses are none.

    Args:
        output: the result of a forward.
    """
    if isinstance(output, Tensor):
        return output
    named = _named(output)
    if named is not None:
        return _by_name(named)
    if isinstance(output, (tuple, list)):
        parts = [part for part in output if not (isinstance(part, Tensor) and part.dim() == 0 and len(output) > 1)]
        return answer(parts[0]) if parts else None
    return None


def _named(output: Any) -> Mapping[Any, Any] | None:
    """Return an output's parts by their names; None if they have none."""
    if isinstance(output, Mapping):
        return output
    names = getattr(output, "_fields", None)
    if isinstance(output, tuple) and names is not None:
        return dict(zip(names, output, strict=False))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name, None) for field in dataclasses.fields(output)}
    return None


def _by_name(parts: Mapping[Any, Any]) -> Tensor | None:
    """Return the part whose name says that it is the answer, or the only one whose name does not say the opposite."""
    for name in _NAMES:
        if parts.get(name) is not None:
            return answer(parts[name])
    logits = [part for name, part in parts.items() if "logits" in str(name) and isinstance(part, Tensor)]
    if logits:
        return logits[0]
    others = [
        part
        for name, part in parts.items()
        if isinstance(part, (Tensor, tuple, list, Mapping)) and not any(word in str(name).lower() for word in _SIDE)
    ]
    return answer(others[0]) if len(others) == 1 else None
