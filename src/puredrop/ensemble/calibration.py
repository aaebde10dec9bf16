"""Uses of a prediction: calibrated probabilities, conformal sets and intervals, selective prediction, rows to label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from puredrop.ensemble.prediction import Prediction

__all__ = [
    "Reliability",
    "RiskCoverage",
    "Temperature",
    "acquire",
    "conformal_intervals",
    "conformal_sets",
    "fit_temperature",
    "reliability",
    "risk_coverage",
]

_TINY = torch.finfo(torch.float64).tiny


def _probabilities(prediction: Prediction | Tensor) -> Tensor:
    """Return the probabilities (rows, classes) of a prediction, float64."""
    mean = prediction.mean if isinstance(prediction, Prediction) else torch.as_tensor(prediction).double()
    if mean.dim() != 2 or mean.shape[1] < 2:
        raise ValueError(f"prediction has shape {tuple(mean.shape)}; expected probabilities (rows, classes)")
    return mean.double()


def _labels(y: Any, rows: int, classes: int) -> Tensor:
    labels = torch.as_tensor(y)
    if labels.shape != (rows,) or labels.is_floating_point():
        raise ValueError(f"y has shape {tuple(labels.shape)}, dtype {labels.dtype}; expected integer labels ({rows},)")
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"y has labels {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}")
    return labels.long()


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature: call it on a prediction to get calibrated probabilities.

    `fit_temperature` returns it. Calling it divides log probabilities by the temperature and normalises them again.

    Args:
        value: the temperature; 1 changes nothing, more than 1 makes probabilities less confident.
        nll_before: mean negative log likelihood in nats of the rows that were fitted, before.
        nll_after: the same after calibration.

    >>> Temperature(2.0, 0.5, 0.4)(torch.tensor([[0.8, 0.2]]))
    tensor([[0.6667, 0.3333]], dtype=torch.float64)
    """

    value: float
    nll_before: float
    nll_after: float

    def __call__(self, prediction: Prediction | Tensor) -> Tensor:
        """Return the calibrated probabilities (rows, classes)."""
        return _heated(_probabilities(prediction).clamp_min(_TINY).log(), self.value)


def _heated(logs: Tensor, temperature: float) -> Tensor:
    """Return the probabilities of log probabilities divided by a temperature."""
    return torch.softmax(logs / temperature, 1)


def fit_temperature(prediction: Prediction | Tensor, y: Any) -> Temperature:
    """Fit the temperature at which the known labels of some rows are most likely.

    Use it where `reliability` shows that probabilities are over- or underconfident. It is fitted on the members' mean,
    not on single members, because averaging changes the confidence.

    Args:
        prediction: prediction of rows that the model was not trained on; or probabilities (rows, classes).
        y: integer labels (rows,).

    Returns:
        The temperature, to be called on predictions of new rows; its value is searched for between 0.05 and 20.

    Raises:
        ValueError: if shapes or labels do not fit, or there are no rows.

    Reference: Guo et al.: On calibration of modern neural networks (ICML 2017); Rahaman and Thiery: Uncertainty
        quantification and deep ensembles (NeurIPS 2021), on calibrating after averaging.

    >>> probabilities = torch.tensor([[0.99, 0.01], [0.99, 0.01], [0.99, 0.01], [0.02, 0.98]])
    >>> fit_temperature(probabilities, [0, 0, 1, 1]).value > 1
    True
    """
    mean = _probabilities(prediction)
    labels = _labels(y, *mean.shape)
    if not len(mean):
        raise ValueError("prediction has no rows; expected some with labels")
    logs = mean.clamp_min(_TINY).log()

    def loss(log_temperature: float) -> float:
        scaled = torch.log_softmax(logs / math.exp(log_temperature), 1)
        return -float(scaled.gather(1, labels[:, None]).mean())

    # The loss has one minimum in 1/temperature, so a search that halves the bracket finds it.
    low, high, golden = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    best = (low + high) / 2
    return Temperature(math.exp(best), loss(0.0), loss(best))


@dataclass(frozen=True)
class Reliability:
    """The data of a reliability diagram: accuracy compared with confidence in each bin.

    `reliability` returns it. Where accuracy lies below confidence, the model is overconfident.

    Args:
        confidence: mean probability of the predicted class in each bin, (bins,); NaN in an empty bin.
        accuracy: share of rows in each bin whose predicted class is right, (bins,); NaN in an empty bin.
        count: number of rows in each bin, int64 (bins,).
        error: expected calibration error: the mean of |accuracy - confidence| over rows.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor
    error: float


def reliability(prediction: Prediction | Tensor, y: Any, bins: int = 15) -> Reliability:
    """Compare the confidence of predictions with how often they are right.

    Use it to see whether probabilities can be taken at their word, before and after `fit_temperature`.

    Args:
        prediction: prediction of rows that the model was not trained on; or probabilities (rows, classes).
        y: integer labels (rows,).
        bins: number of bins of equal width in [0, 1].

    Returns:
        Confidence, accuracy and rows of each bin, and the expected calibration error.

    Raises:
        ValueError: if shapes or labels do not fit, or bins is below 1.

    Reference: Niculescu-Mizil and Caruana: Predicting good probabilities with supervised learning (ICML 2005).

    >>> reliability(torch.tensor([[0.75, 0.25]] * 4), [0, 0, 0, 1]).error
    0.0
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected 1 or more")
    mean = _probabilities(prediction)
    top, label = mean.max(1)
    right = (label == _labels(y, *mean.shape)).double()
    which = (top * bins).long().clamp_max(bins - 1)
    count = torch.bincount(which, minlength=bins)
    confidence, accuracy = (torch.bincount(which, weights=each, minlength=bins) / count for each in (top, right))
    error = float(((accuracy - confidence).abs() * count).nansum() / max(1, len(mean)))
    return Reliability(confidence, accuracy, count, error)


@dataclass(frozen=True)
class RiskCoverage:
    """A risk-coverage curve: the mean loss on the most confident share of rows, for every share.

    `risk_coverage` returns it. A curve that rises with coverage shows that the uncertainty finds the bad predictions.

    Args:
        coverage: shares of rows, (rows,), ascending to 1.
        risk: mean loss on that share, (rows,).
        area: mean risk over all shares.
    """

    coverage: Tensor
    risk: Tensor
    area: float


def risk_coverage(uncertainty: Any, losses: Any) -> RiskCoverage:
    """Return the risk-coverage curve of selective prediction: the loss when the least certain rows are left out.

    Use it to judge whether an uncertainty is worth acting on, such as by asking an expert about those rows.

    Args:
        uncertainty: (rows,), high where the prediction is uncertain, such as `Prediction.entropy`.
        losses: loss of each row, (rows,), such as 1 for an error and 0 otherwise. Rows of equal uncertainty get their
            mean loss.

    Returns:
        The curve and the area under it.

    Raises:
        ValueError: if shapes do not fit, or there are no rows.

    Reference: El-Yaniv and Wiener: On the foundations of noise-free selective classification (JMLR 2010).

    >>> risk_coverage([0.1, 0.9, 0.2, 0.3], [0, 1, 0, 0]).risk
    tensor([0.0000, 0.0000, 0.0000, 0.2500], dtype=torch.float64)
    """
    score, loss = (torch.as_tensor(values).double() for values in (uncertainty, losses))
    if score.dim() != 1 or score.shape != loss.shape or not len(score):
        raise ValueError(
            f"uncertainty has shape {tuple(score.shape)}, losses {tuple(loss.shape)}; expected both (rows,), one row "
            "at least"
        )
    values, where = score.unique(return_inverse=True)
    even = torch.zeros_like(values).index_add(0, where, loss) / torch.bincount(where)
    ordered = even[where][score.argsort()]
    number = torch.arange(1, len(score) + 1, dtype=torch.float64)
    risk = ordered.cumsum(0) / number
    return RiskCoverage(number / len(score), risk, float(risk.mean()))


def _threshold(scores: Tensor, alpha: float) -> float:
    """Return the score that a new row's exceeds with probability alpha at most; infinite for too few rows."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; expected a number between 0 and 1, such as 0.1")
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    return math.inf if rank > len(scores) else float(scores.sort().values[rank - 1])


def conformal_sets(
    calibration: Prediction | Tensor, y: Any, prediction: Prediction | Tensor, alpha: float = 0.1
) -> Tensor:
    """Return sets of classes that contain the true class with probability 1 - alpha, however bad the model is.

    Use it where a list of candidates is more useful than one class. Split conformal prediction: the guarantee holds on
    average over rows, not for each, if new rows and calibration rows come from the same distribution.

    Args:
        calibration: prediction of rows that the model was not trained on; or probabilities (rows, classes).
        y: integer labels of these rows, (rows,).
        prediction: prediction of new rows, from the same ensemble with as many members.
        alpha: the share of sets that may miss the truth, between 0 and 1.

    Returns:
        bool (new rows, classes): whether the class is in the row's set.

    Raises:
        ValueError: if shapes, labels or alpha do not fit.

    Reference: Sadinle, Lei and Wasserman: Least ambiguous set-valued classifiers (JASA 2019).

    >>> known = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> conformal_sets(known, [0, 0, 1], torch.tensor([[0.95, 0.05], [0.5, 0.5]]), alpha=0.3)
    tensor([[ True, False],
            [False, False]])
    """
    known, new = _probabilities(calibration), _probabilities(prediction)
    labels = _labels(y, *known.shape)
    return 1 - new <= _threshold(1 - known.gather(1, labels[:, None]).squeeze(1), alpha)


def conformal_intervals(calibration: Prediction, y: Any, prediction: Prediction, alpha: float = 0.1) -> Tensor:
    """Return intervals of a regression that contain the truth with probability 1 - alpha, wide where members disagree.

    Use it where a deviation between members is not enough and coverage must hold. Split conformal prediction on
    residuals in units of the predicted deviation; the guarantee is that of `conformal_sets`, for each output.

    Args:
        calibration: prediction of rows that the model was not trained on.
        y: true values of these rows, with the shape of the prediction's mean.
        prediction: prediction of new rows, from the same ensemble with as many members.
        alpha: the share of intervals that may miss the truth, between 0 and 1.

    Returns:
        (new rows, outputs..., 2): lower and upper ends.

    Raises:
        ValueError: if shapes or alpha do not fit.

    Reference: Lei et al.: Distribution-free predictive inference for regression (JASA 2018).

    >>> def prediction(mean):
    ...     return Prediction(torch.tensor(mean).double(), torch.ones(len(mean)).double(), torch.ones(len(mean)), 64)
    >>> conformal_intervals(prediction([1, 2, 3]), torch.tensor([1, 2, 4]), prediction([5]), alpha=0.3)
    tensor([[4., 6.]], dtype=torch.float64)
    """
    truth = torch.as_tensor(y).double()
    if truth.shape != calibration.mean.shape:
        raise ValueError(
            f"y has shape {tuple(truth.shape)}; expected {tuple(calibration.mean.shape)}, the shape of the mean"
        )
    known, new = (each.variance.sqrt().clamp_min(_TINY) for each in (calibration, prediction))
    scores = ((truth - calibration.mean).abs() / known).reshape(len(truth), -1)
    reach = torch.tensor([_threshold(column, alpha) for column in scores.T], dtype=torch.float64)
    half = reach.reshape(calibration.mean.shape[1:]) * new
    return torch.stack((prediction.mean - half, prediction.mean + half), -1)


By = Literal["bald", "entropy", "variance"]


def acquire(prediction: Prediction, k: int, by: By) -> Tensor:
    """Return the numbers of the k rows whose labels would tell the most; arguments as `DropoutEnsemble.acquire`."""
    if by not in ("bald", "entropy", "variance"):
        raise ValueError(f"by is {by!r}; expected 'bald', 'entropy' or 'variance'")
    if not 1 <= k <= len(prediction):
        raise ValueError(f"k is {k}; expected 1 to {len(prediction)}, the number of rows")
    score = {"bald": prediction.mutual_information, "entropy": prediction.entropy, "variance": prediction.variance}[by]
    if score is None:
        raise ValueError(f"by is {by!r}, which only a classification has; for a regression pass by='variance'")
    return score.flatten(1).sum(1).topk(k).indices if score.dim() > 1 else score.topk(k).indices
