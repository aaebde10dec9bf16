import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def forward(self, x, options):
        return F.dropout(x, 0.5, training=choose(options))
