from torch import nn

import puredrop.functional as P
from puredrop import Key


class Net(nn.Module):
    def forward(self, x, step):
        return P.dropout(x, 0.5, self.training, key=Key(0).fold_in(step))
