"""Steps on whole layers under masks that groups share: what steps on compacted layers must equal. It knows nothing of
`puredrop.batchwise`: masks are `functional.dropout`'s, each sample named as the first of its group."""

import copy

import torch
from torch import nn

import puredrop
from puredrop import functional

CLOSE = 2e-5  # float32, relative to a tensor's largest value; 3e-7 to 2e-6 is seen
X = torch.randn(24, 20, generator=torch.Generator().manual_seed(0))
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def firsts(samples, groups):
    """Each sample's group's first sample: groups in order, their sizes those of numpy's array_split but for order."""
    starts = [samples * g // groups for g in range(groups)]
    return torch.tensor([max(s for s in starts if s <= i) for i in range(samples)])


class Whole(nn.Module):
    """A dropout layer whose mask the groups share."""

    def __init__(self, layer, groups, sample_dim):
        super().__init__()
        self.layer, self.groups, self.sample_dim = layer, groups, sample_dim

    def forward(self, input):
        layer, dim = self.layer, self.sample_dim
        if not layer.training or float(layer.p) == 0:
            return input
        unit = input.dim() - 1 if type(layer).__name__ == "Dropout" else 1
        shared = [d for d in range(input.dim()) if d not in (dim, unit)]
        ids = firsts(input.shape[dim], self.groups)
        key = getattr(layer, "key", None)
        return functional.dropout(input, layer.p, key=key, shared_dims=shared, sample_ids=ids, sample_dim=dim)


def whole(model, groups, sample_dim=0, leave=()):
    """A copy of a model that runs whole."""
    model = copy.deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, DROPOUTS) and path not in leave:
            parent = model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Whole(layer, groups, sample_dim))
    return model


def step(model, x, seed=1):
    """Output and all gradients of one step, the input's first."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(x)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (output * weight.to(output.dtype)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), {"input": x.grad, **gradients}


def worst(found, expected):
    """The largest difference of a step from another, relative to the largest value of each tensor."""
    assert found[1].keys() == expected[1].keys()
    pairs = [(found[0], expected[0]), *((found[1][name], expected[1][name]) for name in expected[1])]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item() for a, b in pairs)


def difference(model, x, groups, sample_dim=0, leave=(), told=None):
    """How far a step of a model is from that of its whole layers; it is left running batchwise."""
    expected = step(whole(model, groups, sample_dim, leave), x)
    puredrop.batchwise(model, groups, sample_dim=told)
    return worst(step(model, x), expected)


def mlp(widths=(20, 48, 40, 5), p=(0.5, 0.3), input_p=0.0, activation=nn.ReLU, bias=True):
    torch.manual_seed(0)
    layers = [nn.Dropout(input_p)] if input_p else []
    for a, b, rate in zip(widths[:-2], widths[1:-1], p, strict=True):
        layers += [nn.Linear(a, b, bias=bias), activation(), nn.Dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))


def cnn(dims=2, bias=True):
    torch.manual_seed(0)
    conv, drop = getattr(nn, f"Conv{dims}d"), getattr(nn, f"Dropout{dims}d")
    pool = getattr(nn, f"AdaptiveAvgPool{dims}d")
    return nn.Sequential(
        *(conv(3, 20, 3, padding=1, bias=bias), nn.ReLU(), drop(0.5)),
        *(conv(20, 24, 3, stride=2, bias=bias), nn.GELU(), drop(0.3)),
        *(conv(24, 16, 2, dilation=2, padding="valid", bias=bias), nn.Tanh(), drop(0.5)),
        *(pool(2), nn.Flatten(), nn.Linear(16 * 2**dims, 6)),
    )


class Written(nn.Module):
    """As people write it: functions, methods, one dropout layer in two places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(20, 40), nn.Linear(40, 32), nn.Linear(32, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale=None):
        if scale is not None:
            x = x * scale
        x = self.drop(torch.nn.functional.gelu(self.a(x)))
        x = self.drop(self.b(x).relu())
        return self.c(x)
