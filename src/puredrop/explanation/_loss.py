"""The loss a user trains with: checked, and the root of its curvature in the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Loss", "check", "check_classes", "is_squared", "root"]

Loss = Callable[[Tensor, Tensor], Tensor]
_MOST_OUTPUTS = 64
"""Of a row, for a loss whose curvature is found by differentiating it."""


def check_classes(y: Tensor, number: int, ignored: int | None = None) -> None:
    """Refuse labels that are no classes of a model.

    Args:
        y: labels.
        number: of classes.
        ignored: a label that may stand for none.

    Raises:
        ValueError: with those that there are.
    """
    given = y[y != ignored] if ignored is not None else y
    if y.is_floating_point() or (given.numel() and not 0 <= int(given.min()) <= int(given.max()) < number):
        raise ValueError(
            f"y has classes {float(given.min()):g} to {float(given.max()):g}; expected 0 to {number - 1}, "
            f"whole numbers, since the model returns {number} logits"
        )


def check(loss: Loss, outputs: Tensor, y: Tensor, every: Tensor | None = None) -> None:
    """Refuse what is no mean over rows.

    Args:
        loss: the user's.
        outputs, y: of some rows.
        every: what belongs to all rows, where these are a part of them.

    Raises:
        ValueError: for a loss without reduction, or one that is a sum; for classes that the model does not have.
    """
    if _is_cross_entropy(loss) and not y.is_floating_point():
        check_classes(y if every is None else every, outputs.shape[1], _ignored(loss))
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


def is_squared(loss: Loss) -> bool:
    """Whether it is the mean squared error."""
    return loss is F.mse_loss or type(loss) is nn.MSELoss


def _is_cross_entropy(loss: Loss) -> bool:
    return loss is F.cross_entropy or (type(loss) is nn.CrossEntropyLoss and loss.weight is None)


def _ignored(loss: Loss) -> int:
    return int(getattr(loss, "ignore_index", -100))


def root(loss: Loss, outputs: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """S of H = SSᵀ, where H is the second derivative of the loss in the outputs, as a product with a tensor like them.

    Rows must not meet in the loss. Of cross entropy S is diag √π - π√πᵀ, which is exact for any number of classes; of
    the mean squared error a number; of another loss it comes from its Hessian in each row's outputs.

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
    if _is_cross_entropy(loss):
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
            f"entropy, the mean squared error, or at most {_MOST_OUTPUTS} outputs"
        )
    with torch.enable_grad():
        z = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(z, y), z, create_graph=True)
        columns = [torch.autograd.grad(one.sum(), z, retain_graph=True)[0] for one in slope.flatten(1).unbind(1)]
    hessian = torch.stack([one.flatten(1) for one in columns], 1).double()
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    if float(values.min()) < -1e-4 * float(values.abs().max()):
        raise ValueError("loss is not convex in the model's outputs; expected one that is, such as cross entropy")
    half = (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).to(outputs.dtype)
    return lambda noise: (half @ noise.reshape(rows, size, 1)).view(noise.shape)
