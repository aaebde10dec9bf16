from torch import nn


class Net(nn.Module):
    def __init__(self, keep_prob):
        super().__init__()
        self.drop = nn.Dropout(keep_prob)
