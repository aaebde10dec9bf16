import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout2d as drop


class Net(nn.Module):
    def forward(self, x):
        x = F.dropout(x, 0.5, training=self.training)
        x = torch.nn.functional.dropout(
            x,
            p=0.1,  # a comment
            training=self.training,
        )
        return drop(x, training=self.training)
