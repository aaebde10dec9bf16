from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList(nn.Dropout(0.1) for _ in range(4))

    def forward(self, x):
        return sum(drop(x) for drop in self.drops)
