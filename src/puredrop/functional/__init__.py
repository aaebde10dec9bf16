"""Dropout as functions, with torch.nn.functional's semantics and explicit keys."""

from puredrop.functional.channel import dropout1d, dropout2d, dropout3d
from puredrop.functional.element import dropout, keep_mask
from puredrop.functional.fused import bias_dropout_add, dropout_add, gelu_dropout, relu_dropout

__all__ = [
    "bias_dropout_add",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "gelu_dropout",
    "keep_mask",
    "relu_dropout",
]
