"""Tasks: the loss that a network is trained on, and how a prediction is judged row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Classification", "Judged", "Regression", "Table", "Task", "Validation"]

Table = NDArray[np.float64]
Validation = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judged:
    """One way of predicting, judged on every seed and row.

    Args:
        nll: (seeds, rows), negative log likelihood in nats.
        error: (seeds, rows), 1 where the class is wrong, or the squared error in the target's unit.
        calibration: (seeds,), expected calibration error with 15 bins; None for regression.
        uncertainty: (seeds, rows), the entropy of each row's classes, or the variance of several predictors; None for
            one predictor of a regression, which is as confident on any row as on another.
    """

    nll: Table
    error: Table
    calibration: Table | None
    uncertainty: Table | None


class Task(Protocol):
    """A task; `outputs` is the width of the network's last layer."""

    @property
    def name(self) -> str:
        """Return the task's name, as --task takes it."""

    @property
    def outputs(self) -> int:
        """Return the width of the network's last layer."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss that training minimises, (seeds, rows), for targets (rows,) or (seeds, rows)."""

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """Judge the mean of predictors from outputs (predictors, seeds, rows, outputs) and y (rows,).

        `validation` returns outputs and y of the validation rows; it is called only where a width is fitted on them.
        """

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """Return the NLL as `judge` does, (seeds, rows), and compute nothing else."""

    def error(self, table: Table) -> Table:
        """Return the error of each seed from its table (seeds, rows)."""

    def error_difference(self, before: Table, after: Table) -> Table:
        """Return a table whose mean per seed is the difference of that seed's errors."""


@dataclass(frozen=True)
class Classification:
    """Classification by cross entropy; the mean of several predictors is the mean of their probabilities.

    Args:
        outputs: number of classes.
    """

    outputs: int
    name: str = "classification"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the cross entropy in nats."""
        return F.cross_entropy(outputs.transpose(1, 2), y.expand(outputs.shape[:2]), reduction="none")

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """Judge the mean probabilities by NLL, 0/1 error and calibration."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        log_mean = _log_mean(outputs)
        calibration = [
            multiclass_calibration_error(seed.exp(), y, num_classes=self.outputs, n_bins=15).item() for seed in log_mean
        ]
        error = (log_mean.argmax(-1) != y).double().numpy()
        uncertainty = -(log_mean.exp() * log_mean).sum(-1).numpy()
        return Judged(_nll(log_mean, y), error, np.array(calibration), uncertainty)

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """Return the NLL of the mean probabilities."""
        return _nll(_log_mean(outputs), y)

    def error(self, table: Table) -> Table:
        """Return the share of rows whose class is wrong."""
        error: Table = table.mean(axis=1)
        return error

    def error_difference(self, before: Table, after: Table) -> Table:
        """Return the difference row by row."""
        return after - before


@dataclass(frozen=True)
class Regression:
    """Regression by squared error on the standardised target; the likelihood is Gaussian.

    The width of the likelihood is fitted on the validation rows.

    Several predictors are a mixture of Gaussians of one width (Gal & Ghahramani, ICML 2016).

    Args:
        mean, scale: of the target; the network predicts (target - mean) / scale.
    """

    mean: float
    scale: float
    outputs: int = 1
    name: str = "regression"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return half the squared error of the standardised target."""
        return (outputs.squeeze(-1) - y).square() / 2

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """Judge the mean by NLL and squared error in the target's unit."""
        values = outputs.double().squeeze(-1) * self.scale
        error = (values.mean(0) - y * self.scale).square()
        uncertainty = values.var(0).numpy() if len(values) > 1 else None
        return Judged(self.nll(outputs, y, validation), error.numpy(), None, uncertainty)

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """Return the NLL of the mixture, in the target's unit."""
        nll: Table = (_mixture_nll(outputs, y, self._widths(*validation())) + math.log(self.scale)).numpy()
        return nll

    def _widths(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the widths (seeds, 1), of a grid around the residuals' size, that validation rows find most likely."""
        residual = (outputs.double().mean(0).squeeze(-1) - y).square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        grid = [residual * 10**exponent for exponent in torch.linspace(-0.7, 0.3, 41).tolist()]
        likely = torch.stack([_mixture_nll(outputs, y, width).mean(1) for width in grid]).argmin(0)
        return torch.stack(grid)[likely, torch.arange(len(residual))]

    def error(self, table: Table) -> Table:
        """Return the root of the mean squared error."""
        error: Table = np.sqrt(table.mean(axis=1))
        return error

    def error_difference(self, before: Table, after: Table) -> Table:
        """Return a table whose mean over rows is the exact difference of the two roots: a - b = (a² - b²) / (a + b)."""
        return (after - before) / (self.error(after) + self.error(before))[:, None]


def _log_mean(outputs: Tensor) -> Tensor:
    """Return the logarithms of the mean probabilities, (seeds, rows, classes)."""
    return outputs.double().log_softmax(-1).logsumexp(0) - math.log(len(outputs))


def _nll(log_mean: Tensor, y: Tensor) -> Table:
    nll: Table = -log_mean.gather(-1, y.expand(log_mean.shape[:2]).unsqueeze(-1)).squeeze(-1).numpy()
    return nll


def _mixture_nll(outputs: Tensor, y: Tensor, width: Tensor) -> Tensor:
    z = (outputs.double().squeeze(-1) - y) / width
    return -(torch.logsumexp(-z.square() / 2, 0) - math.log(len(outputs)) - width.log() - math.log(2 * math.pi) / 2)
