"""Rows and targets as users give them: apart, as a batch that holds both, or as a loader of such batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._loss import (
    Loss,
    default_loss,
    is_cross_entropy,
    is_squared,
    loss_function,
    refuse_loss_as_targets,
)
from puredrop.members.prepared import PreparedModel, TargetedBatches, prepare, targets_of

__all__ = [
    "as_targets",
    "check_task",
    "choose",
    "prepare_with_targets",
    "resolve_class_dim",
    "split_targets",
    "targets_and_loss",
]

_NAMES = ("labels", "label", "targets", "target", "y")
"""Names under which mappings hold their targets."""


def targets_and_loss(x: Any, y: Any, loss: Any) -> tuple[Any, Tensor, Loss]:
    """Return rows, targets and the loss, which by default follows from the targets.

    Raises:
        TypeError, ValueError: for data without targets, and for what is no loss.
    """
    refuse_loss_as_targets(y, loss)
    named = None if loss is None else loss_function(loss)
    x, y = as_targets(x, y)
    return x, y, named or default_loss(y)


def as_targets(x: Any, y: Any) -> tuple[Any, Tensor]:
    """Return rows and targets apart, the targets as a tensor.

    Raises:
        TypeError, ValueError: if y is missing, and x does not hold targets.
    """
    x, y = split_targets(x, y)
    return x, targets_of(y)


def prepare_with_targets(
    model: Module | PreparedModel, x: Any, y: Any, class_dim: int | None, loss: Loss, **options: Any
) -> tuple[PreparedModel, TargetedBatches]:
    """Survey a model on its data, and return each batch with its targets.

    Args:
        model: any module, or one that is prepared.
        x, y: rows and targets; y is None where x holds both.
        class_dim: dimension of the classes in the model's outputs, or None to find it.
        loss: cross entropy needs whole numbers, the squared error targets in the shape of the outputs.
        options: of `prepare`.

    Raises:
        TypeError, ValueError: for data without targets, or where it is not clear which dimension holds classes.
    """
    x, y = split_targets(x, y)
    prepared = prepare(model, x, **options)
    targets = prepared.targets(y)
    if is_cross_entropy(loss) and not targets.is_floating_point():
        targets = targets.long()
    elif is_squared(loss) and class_dim is None:
        targets = _like_outputs(prepared, targets)
    if is_cross_entropy(loss) or class_dim is not None:
        prepared = resolve_class_dim(prepared, class_dim, targets)
    return prepared, prepared.with_targets(targets)


def _like_outputs(prepared: PreparedModel, targets: Tensor) -> Tensor:
    """Return a regression's targets in the shape of the outputs, where numbers suffice, and the model's precision."""
    shape = prepared.output_shape[1:]
    if targets.dtype == torch.float64:
        targets = targets.to(next((weight.dtype for weight in prepared.root.parameters()), targets.dtype))
    return targets.reshape(len(targets), *shape) if targets[0].numel() == math.prod(shape) else targets


def resolve_class_dim(prepared: PreparedModel, class_dim: int | None, targets: Tensor | None = None) -> PreparedModel:
    """Return the prepared model with the dimension of its classes.

    Args:
        prepared: the model and its rows; one whose dimension was found before keeps it.
        class_dim: what the user said; None to find it: 1 for outputs (rows, classes), else from the targets' shape.
        targets: of all rows.

    Raises:
        ValueError: for a dimension that outputs do not have, or if none was given and the targets do not tell.
    """
    shape, dims = prepared.output_shape, len(prepared.output_shape)
    if class_dim is not None:
        if not -dims <= class_dim < dims or class_dim % dims == 0:
            raise ValueError(
                f"class_dim is {class_dim}; expected a dimension of outputs {shape} other than 0, the rows"
            )
        return prepared.with_class_dim(class_dim % dims)
    if prepared.class_dim is not None:
        return prepared
    if dims < 3:
        return prepared.with_class_dim(1)
    if targets is not None:
        positions = tuple(targets.shape[1:])
        fits = [dim for dim in range(1, dims) if positions in ((*shape[1:dim], *shape[dim + 1 :]), shape[1:])]
        if len(fits) == 1:
            return prepared.with_class_dim(fits[0])
        if not fits:  # the loss or the check of classes says what is wrong
            return prepared
    raise ValueError(
        f"class_dim is not given, and outputs have shape (rows, {', '.join(map(str, shape[1:]))}); pass "
        "class_dim=-1 where classes lie in the last dimension, as in (rows, time, classes), or class_dim=1 for (rows, "
        "classes, ...)"
    )


def split_targets(x: Any, y: Any) -> tuple[Any, Any]:
    """Return rows and targets apart; a loader's batches are put together, so that both come in one order.

    Raises:
        TypeError, ValueError: if y is missing, and x does not hold targets.
    """
    if y is not None:
        return x, y
    is_list_of_batches = isinstance(x, list) and len(x) > 0 and isinstance(x[0], (Mapping, tuple))
    if isinstance(x, (Mapping, tuple, list)) and not is_list_of_batches:
        return _split(x)
    if isinstance(x, (Tensor, np.ndarray)) or hasattr(x, "to_numpy") or not isinstance(x, Iterable):
        raise ValueError(
            f"y is missing, and x is a {type(x).__name__}; pass y, a batch (x, y), or a DataLoader of them"
        )
    batches = [_split(batch) for batch in x]
    if not batches:
        raise ValueError("x is a loader without batches; expected one at least")
    rows, targets = zip(*batches, strict=True)
    return _joined(rows), torch.cat([torch.as_tensor(part) for part in targets])


def _split(batch: Any) -> tuple[Any, Any]:
    """Rows and targets of one batch."""
    if isinstance(batch, Mapping):
        name = next((name for name in _NAMES if name in batch), None)
        if name is None:
            raise ValueError(f"y is missing, and x has {', '.join(map(str, batch))}; expected targets as {_NAMES[0]!r}")
        return {key: value for key, value in batch.items() if key != name}, batch[name]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(f"y is missing, and x gives a {type(batch).__name__}; expected batches (x, y)")
    return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]


def _joined(parts: tuple[Any, ...]) -> Any:
    """Concatenate the rows of several batches."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _joined(tuple(part[name] for part in parts)) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(column) for column in zip(*parts, strict=True))
    return torch.cat([torch.as_tensor(part) for part in parts])


def choose(x: Any, rows: Tensor) -> Any:
    """Return some rows of tensors, arrays or a table, or of a mapping or tuple of them."""
    if isinstance(x, Mapping):
        return {name: choose(value, rows) for name, value in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(choose(value, rows) for value in x)
    if hasattr(x, "iloc"):
        return x.iloc[rows.tolist()]
    return x[rows.to(x.device) if isinstance(x, Tensor) else rows.numpy()]


def check_task(task: str) -> None:
    """Refuse a task that measures do not know.

    Raises:
        ValueError: for anything but "classification" and "regression".
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task is {task!r}; expected 'classification' or 'regression'")
