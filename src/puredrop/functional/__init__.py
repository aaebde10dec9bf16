"""Dropout as functions, with torch.nn.functional's semantics and explicit keys."""

from puredrop.functional.alpha import alpha_dropout, feature_alpha_dropout
from puredrop.functional.attention import scaled_dot_product_attention
from puredrop.functional.block import drop_block2d
from puredrop.functional.channel import dropout1d, dropout2d, dropout3d
from puredrop.functional.element import dropout, keep_mask
from puredrop.functional.fused import bias_dropout_add, dropout_add, gelu_dropout, relu_dropout
from puredrop.functional.gaussian import gaussian_dropout
from puredrop.functional.interception import intercept
from puredrop.functional.path import drop_path

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "drop_block2d",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gelu_dropout",
    "intercept",
    "keep_mask",
    "relu_dropout",
    "scaled_dot_product_attention",
]
