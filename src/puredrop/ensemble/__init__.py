"""The ensemble of a model's thinned sub-networks: its members, their mean, and how far that can be trusted."""

from puredrop.ensemble.calibration import (
    Reliability,
    RiskCoverage,
    Temperature,
    conformal_intervals,
    conformal_sets,
    fit_temperature,
    reliability,
    risk_coverage,
)
from puredrop.ensemble.dropout_ensemble import DropoutEnsemble
from puredrop.ensemble.moments import Moments
from puredrop.ensemble.prediction import Prediction

__all__ = [
    "DropoutEnsemble",
    "Moments",
    "Prediction",
    "Reliability",
    "RiskCoverage",
    "Temperature",
    "conformal_intervals",
    "conformal_sets",
    "fit_temperature",
    "reliability",
    "risk_coverage",
]
