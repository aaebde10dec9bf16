"""Losses that users train with: named or given, checked, and the root of their curvature in the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Loss",
    "as_classes",
    "check",
    "check_classes",
    "curvature_root",
    "default_loss",
    "is_cross_entropy",
    "is_squared",
    "loss_function",
    "refuse_loss_as_targets",
]

Loss = Callable[[Tensor, Tensor], Tensor]
_NAMED: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse_loss": F.mse_loss, "mse": F.mse_loss}
_MOST_OUTPUTS = 64
"""Outputs of a row, at most, for a loss whose curvature is found by differentiating it."""


def refuse_loss_as_targets(y: Any, loss: Any) -> None:
    """Raise TypeError for a loss in the place of y."""
    if loss is None and (isinstance(y, str) or (callable(y) and not isinstance(y, Tensor))):
        raise TypeError(f"y is {y!r}, and loss is missing; where x holds the targets, pass the loss as loss=...")


def default_loss(y: Tensor) -> Loss:
    """Return the mean squared error for floating-point targets, else the cross entropy."""
    return F.mse_loss if y.is_floating_point() else F.cross_entropy


def loss_function(loss: Any) -> Loss:
    """Return the loss that a user names or gives.

    Raises:
        TypeError, ValueError: for what is no loss; the message says what to pass.
    """
    expected = "expected 'cross_entropy', 'mse_loss', or a function (outputs, y) -> mean over rows"
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise ValueError(f"loss is {loss!r}; {expected}")
        return _NAMED[loss]
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; {expected}")
    named: Loss = loss
    return named


def as_classes(y: Tensor, name: str = "y") -> Tensor:
    """Return labels as int64.

    Args:
        y: labels.
        name: of the argument, for errors.

    Raises:
        ValueError: for floating-point numbers.
    """
    if y.is_floating_point():
        raise ValueError(
            f"{name} has dtype {y.dtype}; expected whole numbers, the class of each row from 0: pass {name}.long() "
            "(for numbers of a regression pass task='regression' or loss='mse_loss')"
        )
    return y.long()


def check_classes(y: Tensor, number: int, ignored: int | None = None) -> None:
    """Refuse labels that are no classes of a model.

    Args:
        y: labels.
        number: of the model's classes.
        ignored: the label of entries without a class.

    Raises:
        ValueError: with the dtype or the range of the labels.
    """
    y = as_classes(y)
    labels = y[y != ignored] if ignored is not None else y
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < number:
        raise ValueError(
            f"y has classes {float(labels.min()):g} to {float(labels.max()):g}; expected 0 to {number - 1}, whole "
            f"numbers, since the model returns {number} logits (class_dim= names their dimension, 1 by default)"
        )


def check(loss: Loss, outputs: Tensor, y: Tensor, all_y: Tensor | None = None) -> None:
    """Refuse a loss that is no mean over rows.

    Args:
        loss: the user's.
        outputs, y: of some rows.
        all_y: the targets of all rows, where y is a part of them.

    Raises:
        ValueError: for a loss without reduction, or one that is a sum; for classes that the model does not have, and
            targets of another dtype or shape than the loss needs.
    """
    has_probabilities = y.is_floating_point() and y.shape == outputs.shape
    if is_cross_entropy(loss) and not has_probabilities:
        check_classes(y if all_y is None else all_y, outputs.shape[1], _ignored(loss))
    if is_squared(loss) and y.shape != outputs.shape:
        raise ValueError(
            f"y has dtype {y.dtype} and shape {_shape(y)}, but the model's outputs have shape {_shape(outputs)}; "
            "expected equal shapes for the squared error (for classes pass y.long(), with loss='cross_entropy')"
        )
    value = loss(outputs, y)
    if value.dim():
        raise ValueError(
            f"loss returns shape {tuple(value.shape)}; expected one number, the mean over rows (reduction='mean')"
        )
    twice = loss(torch.cat([outputs, outputs]), torch.cat([y, y]))
    if not math.isclose(float(twice), float(value), rel_tol=1e-3, abs_tol=1e-6):
        raise ValueError(
            f"loss is {float(value):.4g} on rows and {float(twice):.4g} on the same rows twice; expected a mean over "
            "rows (reduction='mean'), not a sum"
        )


def _shape(values: Tensor) -> str:
    return f"(rows,{','.join(f' {size}' for size in values.shape[1:])})"


def is_squared(loss: Loss) -> bool:
    """Return whether the loss is the mean squared error."""
    return loss is F.mse_loss or type(loss) is nn.MSELoss


def is_cross_entropy(loss: Loss) -> bool:
    """Return whether the loss is the cross entropy of classes without weights."""
    return loss is F.cross_entropy or (type(loss) is nn.CrossEntropyLoss and loss.weight is None)


def _ignored(loss: Loss) -> int:
    return int(getattr(loss, "ignore_index", -100))


def curvature_root(loss: Loss, outputs: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product with S, where H = SSᵀ is the second derivative of the loss in the outputs.

    The loss of a row must not depend on other rows. For cross entropy S is diag √π - π√πᵀ, which is exact for any
    number of classes; for the mean squared error a number; for other losses it comes from the Hessian in each row's
    outputs.

    Args:
        loss: a mean over rows.
        outputs: (rows, ...), classes in dimension 1 for cross entropy.
        y: (rows, ...).

    Raises:
        ValueError: for another loss of more than 64 outputs a row, or one that is not convex in them.
    """
    outputs = outputs.detach()
    if is_squared(loss):
        scale = math.sqrt(2 / outputs.numel())
        return lambda noise: scale * noise
    if is_cross_entropy(loss):
        pi = outputs.double().softmax(1).to(outputs.dtype)
        half, counted = pi.sqrt(), torch.ones_like(pi[:, :1])
        if not y.is_floating_point():
            counted = (y != _ignored(loss)).unsqueeze(1).to(pi)
        scaled = counted / math.sqrt(max(1.0, float(counted.sum())))
        return lambda noise: scaled * (half * noise - pi * (half * noise).sum(1, keepdim=True))
    return _by_hessian(loss, outputs, y)


def _by_hessian(loss: Loss, outputs: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    rows, size = len(outputs), outputs[0].numel()
    if size > _MOST_OUTPUTS:
        raise ValueError(
            f"loss is {getattr(loss, '__name__', type(loss).__name__)} of {size} outputs a row; expected cross "
            f"entropy, the mean squared error, or at most {_MOST_OUTPUTS} outputs (outputs (rows, time, classes): pass "
            "loss='cross_entropy', class_dim=-1)"
        )
    with torch.enable_grad():
        z = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(z, y), z, create_graph=True)
        columns = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in slope.flatten(1).unbind(1)]
    hessian = torch.stack([column.flatten(1) for column in columns], 1).double()
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    if float(values.min()) < -1e-4 * float(values.abs().max()):
        raise ValueError("loss is not convex in the model's outputs; expected one that is, such as cross entropy")
    half = (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).to(outputs.dtype)
    return lambda noise: (half @ noise.reshape(rows, size, 1)).view(noise.shape)
