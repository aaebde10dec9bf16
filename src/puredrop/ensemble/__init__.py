"""The ensemble of a model's thinned sub-networks: its members, their mean, and how far that can be trusted."""

from puredrop.ensemble._ensemble import DropoutEnsemble
from puredrop.ensemble._prediction import Prediction

__all__ = ["DropoutEnsemble", "Prediction"]
