"""Models that drop in every way that an ensemble reaches, each with inputs for a few rows."""

import torch
import torch.nn.functional as F
from torch import nn

import puredrop


class Functional(nn.Module):
    """Functions that drop: one is told by the mode, one is not called in eval mode, and BatchNorm beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 24), nn.BatchNorm1d(24), nn.Linear(24, 3)

    def forward(self, x):
        h = F.dropout(torch.relu(self.norm(self.first(x))), 0.4, training=self.training)
        if self.training:
            h = F.dropout(h, 0.2)
        return self.last(h)


class Attending(nn.Module):
    """Attention that drops in training mode only, by torch's function."""

    def __init__(self):
        super().__init__()
        self.project, self.last = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0)
        return self.last(h.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(4, 8, 2, dropout=0.5, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.lstm(x)[0][:, -1])


class Residual(nn.Module):
    """Whole branches, and a layer that reads what a decision has reached and what none has."""

    def __init__(self):
        super().__init__()
        self.first, self.branch = nn.Linear(6, 6), nn.Linear(6, 6)
        self.path, self.drop = puredrop.nn.DropPath(0.5), nn.Dropout(0.3)

    def forward(self, x):
        h = self.first(x)
        return h + self.path(torch.tanh(self.branch(self.drop(h))))


class Twice(nn.Module):
    """One dropout layer in two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.drop = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3), nn.Dropout(0.4)

    def forward(self, x):
        h = self.drop(torch.relu(self.a(x)))
        return self.c(self.drop(torch.relu(self.b(h))))


class InPlace(nn.Module):
    """Drops in place from what it reads again."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.a(x)
        dropped = F.dropout(h, 0.5, self.training, inplace=True)
        return self.b(h + dropped)


class Builtin(nn.Module):
    """Torch's own functions below F.dropout, called in eval mode too, and statistics of each sample."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(2, 8, 3), nn.InstanceNorm1d(8), nn.Linear(32, 3)

    def forward(self, x):
        h = torch.feature_dropout(torch.relu(self.norm(self.a(x))), 0.3, self.training)
        return self.b(torch.dropout(h.flatten(1), p=0.4, train=self.training))


class Weights(nn.Module):
    """Weights that drop, which all rows share."""

    def __init__(self):
        super().__init__()
        self.a, self.b = puredrop.nn.drop_connect(nn.Linear(6, 10), 0.5), nn.Linear(10, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def mlp():
    layers = [nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 24), nn.GELU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(24, 3))


def convolutional():
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 9, 3))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))


def odd():
    """Variants whose noise is no decision on elements."""
    p = puredrop.nn
    return nn.Sequential(nn.Linear(6, 12), p.GaussianDropout(0.3), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(12, 3))


def relu_net(units=8, p=0.5, outputs=3):
    """One site in front of the last layer: float64, so that closed forms hold to rounding."""
    return nn.Sequential(nn.Linear(6, units), nn.ReLU(), nn.Dropout(p), nn.Linear(units, outputs)).double()


ROWS = 5
MODELS = {
    "mlp": (mlp, (ROWS, 6)),
    "input dropout": (lambda: nn.Sequential(nn.Dropout(0.2), mlp()), (ROWS, 6)),
    "convolutions": (convolutional, (ROWS, 1, 8, 8)),
    "encoder": (encoder, (ROWS, 5, 8)),
    "functions": (Functional, (ROWS, 6)),
    "attention": (Attending, (ROWS, 5, 8)),
    "recurrent": (Recurrent, (ROWS, 7, 4)),
    "residual": (Residual, (ROWS, 6)),
    "twice": (Twice, (ROWS, 6)),
    "in place": (InPlace, (ROWS, 6)),
    "other noise": (odd, (ROWS, 6)),
    "builtins": (Builtin, (ROWS, 2, 6)),
    "weights": (Weights, (ROWS, 6)),
}


def model_of(name):
    """A model in an odd state, and rows for it."""
    make, shape = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model.train(), torch.randn(shape)
