"""Dropout layers: subclasses of torch.nn's layers where torch has them, and further layers from the literature."""

from puredrop.nn.alpha import AlphaDropout, FeatureAlphaDropout
from puredrop.nn.attention import MultiheadAttention
from puredrop.nn.block import DropBlock2d
from puredrop.nn.channel import Dropout1d, Dropout2d, Dropout3d
from puredrop.nn.element import Dropout
from puredrop.nn.gaussian import GaussianDropout
from puredrop.nn.path import DropPath, LayerDrop
from puredrop.nn.recurrent import GRU, LSTM, RNN
from puredrop.nn.sequence import LockedDropout, PatchDropout, WordDropout
from puredrop.nn.weight import DropConnect, EmbeddingDropout, WeightDrop, drop_connect

__all__ = [
    "AlphaDropout",
    "DropBlock2d",
    "DropConnect",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GRU",
    "GaussianDropout",
    "LSTM",
    "LayerDrop",
    "LockedDropout",
    "MultiheadAttention",
    "PatchDropout",
    "RNN",
    "WeightDrop",
    "WordDropout",
    "drop_connect",
]
