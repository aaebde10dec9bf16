import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout2d as drop


class Net(nn.Module):
    def forward(self, x):
        x = F.dropout(x, 0.5)
        x = torch.nn.functional.dropout(
            x,
            p=0.1,  # a comment
        )
        return drop(x)
