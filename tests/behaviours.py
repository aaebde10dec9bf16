"""Behaviours of torch's dropout that users rely on, as code for both libraries: values, errors, layouts, layers.

`test_torch_surface.py` adds ranks, warnings, vmap and the other layers, and compares.
"""

import copy
import inspect
import pickle
from types import SimpleNamespace

import torch

import puredrop
from oracles import FLOATS

TORCH = SimpleNamespace(name="torch", F=torch.nn.functional, nn=torch.nn)
OURS = SimpleNamespace(name="puredrop", F=puredrop.functional, nn=puredrop.nn)
LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")
FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
SHAPES = {"dropout": (4, 6), "dropout1d": (4, 6, 5), "dropout2d": (4, 6, 5, 3), "dropout3d": (4, 6, 5, 3, 2)}

BEHAVIOURS = []


def behaviour(text, deliberate=None):
    def add(function):
        BEHAVIOURS.append((text, function, deliberate))
        return function

    return add


def functions(lib):
    return [(getattr(lib.F, name), torch.randn(SHAPES[name]) + 3) for name in FUNCTIONS]


def layers(lib, **arguments):
    return [getattr(lib.nn, name)(**arguments) for name in LAYERS]


def raised(call):
    try:
        call()
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "is accepted"


def one(answers):
    """The answer that all of several cases gave."""
    answers = list(answers)
    assert len(set(answers)) == 1, answers
    return answers[0]


@behaviour("eval mode")
def _(lib):
    return one("returns the input itself" if f(x, 0.5, False) is x else "a new tensor" for f, x in functions(lib)[:3])


@behaviour(
    "eval mode, dropout3d without a batch dimension",
    deliberate="there is nothing to do, so nothing is made; torch returns a view",
)
def _(lib):
    x = torch.randn(6, 5, 3, 2)
    return "returns the input itself" if lib.F.dropout3d(x, 0.5, False) is x else "returns a view"


@behaviour("p = 0 in training")
def _(lib):
    return one("returns the input itself" if f(x, 0.0) is x else "a new tensor" for f, x in functions(lib))


@behaviour("p = 1")
def _(lib):
    return one("zeros" if not f(x, 1.0).any() else "not zeros" for f, x in functions(lib))


@behaviour("p = 1, gradient")
def _(lib):
    def gradient(f, x):
        x.requires_grad_()
        return torch.autograd.grad(f(x, 1.0).sum(), x)[0]

    return one("zeros" if not gradient(f, x).any() else "not zeros" for f, x in functions(lib))


@behaviour("values kept at p = 0.5")
def _(lib):
    def exact(f, x):
        y = f(x, 0.5)
        return 0 < (y == 0).sum() < y.numel() and torch.equal(y[y != 0], 2 * x[y != 0])

    return one(
        "exactly twice the input" if exact(f, x.repeat(4, *[1] * (x.dim() - 1))) else "other" for f, x in functions(lib)
    )


@behaviour("p = 1.5, p = -0.1")
def _(lib):
    return one(raised(lambda f=f, x=x, p=p: f(x, p)) for f, x in functions(lib) for p in (1.5, -0.1))


@behaviour("p = 1.5 in eval mode")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x, 1.5, False)) for f, x in functions(lib))


@behaviour("p = 1.5 in a layer's constructor")
def _(lib):
    return one(raised(lambda name=name: getattr(lib.nn, name)(1.5)) for name in LAYERS)


@behaviour("p = NaN in a layer's constructor", deliberate="a NaN rate is a mistake wherever it is made")
def _(lib):
    return one(raised(lambda name=name: getattr(lib.nn, name)(float("nan"))) for name in LAYERS)


@behaviour("p = NaN in a call", deliberate="the same class as for every other p outside [0, 1]")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x, float("nan"))) for f, x in functions(lib)[:1])


@behaviour("training = 'False', 1, None")
def _(lib):
    return one(raised(lambda f=f, x=x, t=t: f(x, 0.5, t)) for f, x in functions(lib) for t in ("False", 1, None))


@behaviour("p as a 0-d tensor")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x, torch.tensor(0.5))) for f, x in functions(lib))


@behaviour("integer input, p = 0.5")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x.long(), 0.5)) for f, x in functions(lib))


@behaviour("integer input, p = 0 / p = 1 / eval")
def _(lib):
    def answer(f, x):
        x = x.long()
        same = f(x, 0.0) is x and torch.equal(f(x, 0.5, False), x)
        return f"input, zeros of {f(x, 1.0).dtype}, input" if same else "other"

    return one(answer(f, x) for f, x in functions(lib))


@behaviour("complex input, p = 0.5", deliberate="RuntimeError as for every other dtype; the message shows view_as_real")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x.to(torch.complex64), 0.5)) for f, x in functions(lib)[:1])


@behaviour("a list as input")
def _(lib):
    return one(raised(lambda f=f: f([1.0], 0.5)) for f, _ in functions(lib)[:1])


@behaviour("dtype of the output")
def _(lib):
    return one("the input's" if f(x.to(t), 0.5).dtype == t else "other" for f, x in functions(lib) for t in FLOATS)


@behaviour("empty input")
def _(lib):
    x = torch.ones(0, 3)
    return "returns the input itself" if lib.F.dropout(x, 0.5) is x else "a new tensor"


@behaviour("0-d input")
def _(lib):
    return str(tuple(lib.F.dropout(torch.tensor(1.0), 0.5).shape))


@behaviour("channels_last, permuted dense")
def _(lib):
    x = torch.randn(2, 3, 4, 5)
    cases = [x.to(memory_format=torch.channels_last), x.permute(3, 0, 2, 1)]
    return one("strides kept" if lib.F.dropout(c, 0.5).stride() == c.stride() else "strides changed" for c in cases)


@behaviour("dropout2d on channels_last")
def _(lib):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return "strides kept" if lib.F.dropout2d(x, 0.5).stride() == x.stride() else "strides changed"


@behaviour("an expanded input")
def _(lib):
    return str(lib.F.dropout(torch.ones(1, 3).expand(2, 3), 0.5).stride())


@behaviour("inplace on a plain tensor")
def _(lib):
    def answer(f, x):
        y = f(x, 0.5, True, True)
        return "writes into the input and returns it" if y is x or y.data_ptr() == x.data_ptr() else "other"

    return one(answer(f, x) for f, x in functions(lib))


@behaviour("inplace on a leaf that requires grad")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x.requires_grad_(), 0.5, True, True)) for f, x in functions(lib))


@behaviour("inplace, p = 1, on a leaf that requires grad")
def _(lib):
    return one(raised(lambda f=f, x=x: f(x.requires_grad_(), 1.0, True, True)) for f, x in functions(lib))


@behaviour("inplace on overlapping memory")
def _(lib):
    return raised(lambda: lib.F.dropout(torch.ones(1, 3).expand(2, 3), 0.5, True, True))


@behaviour("a dropped NaN", deliberate="selection, not multiplication: what is dropped is gone")
def _(lib):
    y = lib.F.dropout(torch.full((1000,), float("nan")), 0.5)
    return "stays NaN" if y.isnan().all() else "is 0"


@behaviour("default of training in the functions")
def _(lib):
    return one(str(inspect.signature(f).parameters["training"].default) for f, _ in functions(lib))


@behaviour("first arguments of the functions")
def _(lib):
    return one(", ".join(list(inspect.signature(f).parameters)[:4]) for f, _ in functions(lib))


@behaviour("repr of a layer", deliberate="a printed model shows which layers are puredrop's")
def _(lib):
    return "; ".join(map(repr, layers(lib, p=0.3, inplace=True)))


@behaviour("state_dict of a layer")
def _(lib):
    return one(str(dict(layer.state_dict())) for layer in layers(lib))


@behaviour("isinstance of torch's layers")
def _(lib):
    pairs = zip(LAYERS, layers(lib), strict=True)
    return one(str(isinstance(layer, getattr(torch.nn, name))) for name, layer in pairs)


@behaviour("deepcopy, pickle")
def _(lib):
    def same(layer):
        others = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
        return all(type(o) is type(layer) and (o.p, o.inplace, o.training) == (0.3, True, False) for o in others)

    return one(str(same(layer.eval())) for layer in layers(lib, p=0.3, inplace=True))


@behaviour("nn.Module.apply, hooks")
def _(lib):
    calls = []
    model = torch.nn.Sequential(*layers(lib)[:1])
    model.apply(lambda module: calls.append(type(module).__name__))
    model[0].register_forward_hook(lambda module, arguments, output: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda module, arguments: calls.append("before"))
    model[0].register_full_backward_hook(lambda module, gi, go: calls.append("backward"))
    model(torch.ones(3, requires_grad=True)).sum().backward()
    return ", ".join(calls)


@behaviour("manual_seed, fork_rng, set_rng_state")
def _(lib):
    def draw():
        return lib.F.dropout(torch.ones(100), 0.5)

    torch.manual_seed(1)
    first, state, second = draw(), torch.get_rng_state(), draw()
    torch.manual_seed(1)
    with torch.random.fork_rng():
        draw()
    again = draw()
    torch.set_rng_state(state)
    return str((torch.equal(first, again), torch.equal(second, draw()), torch.equal(first, second)))
