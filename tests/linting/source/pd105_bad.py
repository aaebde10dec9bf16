from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return nn.Dropout(0.5)(x)
