"""Dropout as layers: drop-in subclasses of torch.nn's."""

from puredrop.nn.element import Dropout

__all__ = ["Dropout"]
