"""Dropout as layers: drop-in subclasses of torch.nn's."""

from puredrop.nn.channel import Dropout1d, Dropout2d, Dropout3d
from puredrop.nn.element import Dropout

__all__ = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"]
