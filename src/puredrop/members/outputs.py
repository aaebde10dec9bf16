"""The tensor that is averaged over members, read from what a model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from puredrop.inspection.tensors import tensors_in

__all__ = ["Task", "main_output", "probabilities", "reader"]

Task = Literal["classification", "regression"] | Callable[[Any], Tensor]


def reader(task: Task, class_dim: int, noise: Callable[[Any], Tensor] | None = None) -> Callable[[Any], Tensor]:
    """Return the function from what the model returns to the tensor that is averaged.

    Args:
        task: as of `DropoutEnsemble`.
        class_dim: dimension of the classes in the model's output.
        noise: of a regression: function from the model's output to variances, which are appended to the outputs.
    """
    if task == "classification":
        return lambda output: probabilities(main_output(output), class_dim)
    value = task if callable(task) else main_output
    if noise is None:
        return value

    def both(output: Any) -> Tensor:
        outputs = value(output)
        return torch.stack((outputs, noise(output).expand_as(outputs)), -1)

    return both


def probabilities(logits: Tensor, class_dim: int) -> Tensor:
    """Return the probabilities of classes, in float32 or float64."""
    if not -logits.dim() <= class_dim < logits.dim() or logits.shape[class_dim] < 2:
        raise ValueError(
            f"class_dim is {class_dim}, the model's output has shape {tuple(logits.shape)}; expected logits of two "
            "classes or more there (for one logit pass task=torch.sigmoid)"
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # Five times as fast as torch.softmax over ten classes that lie in a row.
    powers = (logits - logits.amax(class_dim, keepdim=True)).exp()
    return powers / powers.sum(class_dim, keepdim=True)


def main_output(output: Any) -> Tensor:
    """Return the tensor among what a model returns: itself, `logits`, or the first.

    Raises:
        TypeError: if there is none.
    """
    if isinstance(output, Tensor):
        return output
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Mapping):
        logits = output.get("logits")
        if isinstance(logits, Tensor):
            return logits
        output = tuple(output.values())
    found = next(tensors_in(output), None) if isinstance(output, (tuple, list)) else None
    if found is None:
        raise TypeError(
            f"the model returns {type(output).__name__}, in which no tensor was found; "
            "pass task=function, from what the model returns to the tensor that is to be averaged"
        )
    return found
