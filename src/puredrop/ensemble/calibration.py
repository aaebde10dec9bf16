"""What is done with a prediction: probabilities calibrated, sets and intervals that hold the truth, rows to label."""

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


def _probabilities(of: Prediction | Tensor) -> Tensor:
    """(rows, classes), float64."""
    found = of.mean if isinstance(of, Prediction) else torch.as_tensor(of).double()
    if found.dim() != 2 or found.shape[1] < 2:
        raise ValueError(f"prediction has shape {tuple(found.shape)}; expected probabilities (rows, classes)")
    return found.double()


def _labels(y: Any, rows: int, classes: int) -> Tensor:
    found = torch.as_tensor(y)
    if found.shape != (rows,) or found.is_floating_point():
        raise ValueError(f"y has shape {tuple(found.shape)}, dtype {found.dtype}; expected integer labels ({rows},)")
    if rows and not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise ValueError(f"y has labels {int(found.min())} to {int(found.max())}; expected 0 to {classes - 1}")
    return found.long()


@dataclass(frozen=True)
class Temperature:
    """A power to which probabilities are raised, and what that did to rows that it was fitted on.

    Args:
        value: 1 leaves them; above 1 makes them less sure.
        nll_before, nll_after: mean negative log likelihood of these rows, nats.
    """

    value: float
    nll_before: float
    nll_after: float

    def __call__(self, prediction: Prediction | Tensor) -> Tensor:
        """Calibrated probabilities (rows, classes)."""
        return _heated(_probabilities(prediction).clamp_min(_TINY).log(), self.value)


def _heated(logs: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logs / temperature, 1)


def fit_temperature(prediction: Prediction | Tensor, y: Any) -> Temperature:
    """The temperature of the members' mean at which rows with known labels are most likely.

    Fitted on the mean, and not on single members: averaging changes how sure the probabilities are.

    Args:
        prediction: of rows that were not trained on; or probabilities (rows, classes).
        y: integer labels (rows,).

    Raises:
        ValueError: if shapes or labels do not fit.

    Reference: Guo et al.: On calibration of modern neural networks (ICML 2017); Rahaman and Thiery: Uncertainty
        quantification and deep ensembles (NeurIPS 2021), on calibrating after averaging.
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
    """How often the predicted class is right, beside how sure the probabilities are of it.

    Args:
        confidence, accuracy: means in each bin, (bins,); NaN in an empty one.
        count: rows in each bin.
        error: expected calibration error: |accuracy - confidence|, weighted by rows.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor
    error: float


def reliability(prediction: Prediction | Tensor, y: Any, bins: int = 15) -> Reliability:
    """The data of a reliability diagram.

    Args:
        prediction: or probabilities (rows, classes).
        y: integer labels (rows,).
        bins: of equal width in [0, 1].

    Raises:
        ValueError: if shapes or labels do not fit, or bins is below 1.

    Reference: Niculescu-Mizil and Caruana: Predicting good probabilities with supervised learning (ICML 2005).
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected 1 or more")
    mean = _probabilities(prediction)
    top, label = mean.max(1)
    right = (label == _labels(y, *mean.shape)).double()
    which = (top * bins).long().clamp_max(bins - 1)
    count = torch.bincount(which, minlength=bins)
    sure, hit = (torch.bincount(which, weights=one, minlength=bins) / count for one in (top, right))
    error = float(((hit - sure).abs() * count).nansum() / max(1, len(mean)))
    return Reliability(sure, hit, count, error)


@dataclass(frozen=True)
class RiskCoverage:
    """What the loss is on the surest share of rows.

    Args:
        coverage: shares of rows, (rows,), ascending.
        risk: mean loss of so many.
        area: mean risk over all shares.
    """

    coverage: Tensor
    risk: Tensor
    area: float


def risk_coverage(uncertainty: Any, losses: Any) -> RiskCoverage:
    """The risk-coverage curve: what is gained by leaving the least certain rows to somebody else.

    Args:
        uncertainty: (rows,), high where one is not sure, such as `Prediction.entropy`.
        losses: (rows,), such as 1 for an error and 0 else. Rows of one uncertainty have their mean loss.

    Raises:
        ValueError: if shapes do not fit, or there are no rows.

    Reference: El-Yaniv and Wiener: On the foundations of noise-free selective classification (JMLR 2010).
    """
    doubt, loss = (torch.as_tensor(one).double() for one in (uncertainty, losses))
    if doubt.dim() != 1 or doubt.shape != loss.shape or not len(doubt):
        raise ValueError(
            f"uncertainty has shape {tuple(doubt.shape)}, losses {tuple(loss.shape)}; expected both (rows,), one row "
            "at least"
        )
    values, where = doubt.unique(return_inverse=True)
    even = torch.zeros_like(values).index_add(0, where, loss) / torch.bincount(where)
    ordered = even[where][doubt.argsort()]
    number = torch.arange(1, len(doubt) + 1, dtype=torch.float64)
    risk = ordered.cumsum(0) / number
    return RiskCoverage(number / len(doubt), risk, float(risk.mean()))


def _threshold(scores: Tensor, alpha: float) -> float:
    """The score below which a new row's lies with probability 1 - alpha at least; infinite for too few rows."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; expected a number between 0 and 1, such as 0.1")
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    return math.inf if rank > len(scores) else float(scores.sort().values[rank - 1])


def conformal_sets(
    calibration: Prediction | Tensor, y: Any, prediction: Prediction | Tensor, alpha: float = 0.1
) -> Tensor:
    """Sets of classes that hold the truth with probability 1 - alpha, whatever the model is worth.

    Split conformal: holds for rows exchangeable with those of the calibration, on average over rows, not for each.

    Args:
        calibration: of rows that were not trained on; or probabilities (rows, classes).
        y: their integer labels.
        prediction: of new rows, from the same ensemble with as many members.
        alpha: the share of sets that may miss the truth.

    Returns:
        bool (new rows, classes).

    Raises:
        ValueError: if shapes, labels or alpha do not fit.

    Reference: Sadinle, Lei and Wasserman: Least ambiguous set-valued classifiers (JASA 2019).
    """
    known, new = _probabilities(calibration), _probabilities(prediction)
    labels = _labels(y, *known.shape)
    return 1 - new <= _threshold(1 - known.gather(1, labels[:, None]).squeeze(1), alpha)


def conformal_intervals(calibration: Prediction, y: Any, prediction: Prediction, alpha: float = 0.1) -> Tensor:
    """Intervals of a regression that hold the truth with probability 1 - alpha, wide where the ensemble is unsure.

    Split conformal with residuals in units of the predicted deviation; holds as `conformal_sets` says, for each output.

    Args:
        calibration: of rows that were not trained on.
        y: their truths, like its mean.
        prediction: of new rows.
        alpha: the share of intervals that may miss the truth.

    Returns:
        (new rows, outputs..., 2): lower and upper ends.

    Raises:
        ValueError: if shapes or alpha do not fit.

    Reference: Lei et al.: Distribution-free predictive inference for regression (JASA 2018).
    """
    truth = torch.as_tensor(y).double()
    if truth.shape != calibration.mean.shape:
        raise ValueError(f"y has shape {tuple(truth.shape)}; expected {tuple(calibration.mean.shape)}, as the mean has")
    known, new = (one.variance.sqrt().clamp_min(_TINY) for one in (calibration, prediction))
    scores = ((truth - calibration.mean).abs() / known).flatten(1)
    reach = torch.tensor([_threshold(column, alpha) for column in scores.T], dtype=torch.float64)
    half = reach.reshape(calibration.mean.shape[1:]) * new
    return torch.stack((prediction.mean - half, prediction.mean + half), -1)


By = Literal["bald", "entropy", "variance"]


def acquire(prediction: Prediction, k: int, by: By) -> Tensor:
    """Numbers of the k rows whose labels would tell the most; arguments as `DropoutEnsemble.acquire`."""
    if by not in ("bald", "entropy", "variance"):
        raise ValueError(f"by is {by!r}; expected 'bald', 'entropy' or 'variance'")
    if not 1 <= k <= len(prediction):
        raise ValueError(f"k is {k}; expected 1 to {len(prediction)}, the number of rows")
    score = {"bald": prediction.mutual_information, "entropy": prediction.entropy, "variance": prediction.variance}[by]
    if score is None:
        raise ValueError(f"by is {by!r}, which a classification has; for a regression pass by='variance'")
    return score.flatten(1).sum(1).topk(k).indices if score.dim() > 1 else score.topk(k).indices
