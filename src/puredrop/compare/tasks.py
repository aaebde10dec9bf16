"""What the network predicts, how it is trained for it, and how a prediction is judged row by row."""

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
        doubt: (seeds, rows), how unsure each row is: the entropy of its classes, or the variance of several
            predictors; None for one predictor of a regression, which is as sure of any row as of another.
    """

    nll: Table
    error: Table
    calibration: Table | None
    doubt: Table | None


class Task(Protocol):
    """A task; `outputs` is the width of the network's last layer."""

    @property
    def name(self) -> str:
        """As users call it."""

    @property
    def outputs(self) -> int:
        """Width of the last layer."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What is minimised: (seeds, rows, outputs) and (rows,) or (seeds, rows) to (seeds, rows)."""

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """Judge the mean of predictors from outputs (predictors, seeds, rows, outputs) and y (rows,).

        Validation gives the same two of the validation rows; called only where something is fitted on them.
        """

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """The first that `judge` finds, (seeds, rows), and nothing else."""

    def error(self, table: Table) -> Table:
        """The error of each seed from its table."""

    def error_difference(self, before: Table, after: Table) -> Table:
        """A table whose mean per seed is the difference of that seed's errors."""


@dataclass(frozen=True)
class Classification:
    """Cross entropy; the mean of several predictors is the mean of their probabilities.

    Args:
        outputs: number of classes.
    """

    outputs: int
    name: str = "classification"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Cross entropy in nats."""
        return F.cross_entropy(outputs.transpose(1, 2), y.expand(outputs.shape[:2]), reduction="none")

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """NLL, 0/1 error and calibration of the mean probabilities."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        log_mean = _log_mean(outputs)
        calibration = [
            multiclass_calibration_error(one.exp(), y, num_classes=self.outputs, n_bins=15).item() for one in log_mean
        ]
        error = (log_mean.argmax(-1) != y).double().numpy()
        doubt = -(log_mean.exp() * log_mean).sum(-1).numpy()
        return Judged(_surprise(log_mean, y), error, np.array(calibration), doubt)

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """Of the mean probabilities."""
        return _surprise(_log_mean(outputs), y)

    def error(self, table: Table) -> Table:
        """Share of rows whose class is wrong."""
        error: Table = table.mean(axis=1)
        return error

    def error_difference(self, before: Table, after: Table) -> Table:
        """Row by row."""
        return after - before


@dataclass(frozen=True)
class Regression:
    """Squared error on the standardised target; the likelihood is Gaussian, of a width fitted on validation rows.

    Several predictors are a mixture of Gaussians of one width (Gal & Ghahramani, ICML 2016).

    Args:
        mean, scale: of the target; the network predicts (target - mean) / scale.
    """

    mean: float
    scale: float
    outputs: int = 1
    name: str = "regression"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Half the squared error of the standardised target."""
        return (outputs.squeeze(-1) - y).square() / 2

    def judge(self, outputs: Tensor, y: Tensor, validation: Validation) -> Judged:
        """NLL in the target's unit and squared error of the mean."""
        found = outputs.double().squeeze(-1) * self.scale
        error = (found.mean(0) - y * self.scale).square()
        doubt = found.var(0).numpy() if len(found) > 1 else None
        return Judged(self.nll(outputs, y, validation), error.numpy(), None, doubt)

    def nll(self, outputs: Tensor, y: Tensor, validation: Validation) -> Table:
        """Of the mixture, in the target's unit."""
        nll: Table = (_mixture_nll(outputs, y, self._widths(*validation())) + math.log(self.scale)).numpy()
        return nll

    def _widths(self, outputs: Tensor, y: Tensor) -> Tensor:
        """(seeds, 1): the width, on a grid around the residuals' size, that validation rows find most likely."""
        residual = (outputs.double().mean(0).squeeze(-1) - y).square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        grid = [residual * 10**exponent for exponent in torch.linspace(-0.7, 0.3, 41).tolist()]
        likely = torch.stack([_mixture_nll(outputs, y, width).mean(1) for width in grid]).argmin(0)
        return torch.stack(grid)[likely, torch.arange(len(residual))]

    def error(self, table: Table) -> Table:
        """Root of the mean squared error."""
        error: Table = np.sqrt(table.mean(axis=1))
        return error

    def error_difference(self, before: Table, after: Table) -> Table:
        """By a - b = (a² - b²) / (a + b): the mean over rows is the exact difference of the two roots."""
        return (after - before) / (self.error(after) + self.error(before))[:, None]


def _log_mean(outputs: Tensor) -> Tensor:
    """Logarithms of the mean probabilities, (seeds, rows, classes)."""
    return outputs.double().log_softmax(-1).logsumexp(0) - math.log(len(outputs))


def _surprise(log_mean: Tensor, y: Tensor) -> Table:
    nll: Table = -log_mean.gather(-1, y.expand(log_mean.shape[:2]).unsqueeze(-1)).squeeze(-1).numpy()
    return nll


def _mixture_nll(outputs: Tensor, y: Tensor, width: Tensor) -> Tensor:
    z = (outputs.double().squeeze(-1) - y) / width
    return -(torch.logsumexp(-z.square() / 2, 0) - math.log(len(outputs)) - width.log() - math.log(2 * math.pi) / 2)
