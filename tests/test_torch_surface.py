"""Every behaviour of torch's dropout that users rely on, torch's and ours side by side.

Each entry runs the same code with both libraries and says in a few words what happened; the words must be equal unless
the entry gives the reason for a deliberate difference. docs/torch-surface.md is this table; write it anew with
PUREDROP_WRITE_DOCS=1.
"""

import copy
import inspect
import os
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import puredrop
from oracles import FLOATS

PAGE = Path(__file__).parents[1] / "docs/torch-surface.md"
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


@behaviour("repr of a layer")
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


@behaviour("dropout1d: rank 2, 3 / others")
def _(lib):
    answers = [raised(lambda r=r: lib.F.dropout1d(torch.ones([2] * r), 0.5)) for r in range(7)]
    return f"{one(answers[2:4])} / {one(answers[:2] + answers[4:])}"


def warned(lib, name, rank):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(lib.F, name)(torch.ones([2] * rank), 0.5)
    texts = {str(w.message).split(" which is")[0].split(" and assuming")[0].rstrip(",") for w in caught}
    assert all(w.filename == __file__ for w in caught)
    return " + ".join(f"{w}" for w in sorted(texts)) or "no warning"


@behaviour("dropout2d, ranks 2 to 5: warnings")
def _(lib):
    return "; ".join(warned(lib, "dropout2d", rank) for rank in range(2, 6))


@behaviour("dropout3d, ranks 3 to 6: warnings")
def _(lib):
    return "; ".join(warned(lib, "dropout3d", rank) for rank in range(3, 7))


def shares(lib, name, shape):
    """Which dimensions one decision is shared over, from a tensor large enough to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = getattr(lib.F, name)(torch.ones(shape), 0.5)
    return [d for d in range(len(shape)) if torch.equal(y, y.narrow(d, 0, 1).expand_as(y))]


@behaviour("dropout1d: decision shared over, for (N, C, L) / (C, L)")
def _(lib):
    return f"{shares(lib, 'dropout1d', (9, 8, 5))} / {shares(lib, 'dropout1d', (64, 5))}"


@behaviour("dropout2d: decision shared over, for (N, C, H, W) / (N, C, L) / (N, C)")
def _(lib):
    return " / ".join(str(shares(lib, "dropout2d", shape)) for shape in ((9, 8, 5, 4), (9, 8, 5), (9, 8)))


@behaviour("dropout3d: decision shared over, for (N, C, D, H, W) / (C, D, H, W)")
def _(lib):
    return " / ".join(str(shares(lib, "dropout3d", shape)) for shape in ((9, 8, 5, 4, 3), (64, 5, 4, 3)))


@behaviour("dropout2d on rank 1: p = 0.5 / eval")
def _(lib):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = (
            raised(lambda: lib.F.dropout2d(torch.ones(3), 0.5)),
            raised(lambda: lib.F.dropout2d(torch.ones(3), 0.5, False)),
        )
    return " / ".join(answers)


def mapped(lib, randomness):
    xs = torch.ones(6, 200)
    return torch.func.vmap(lambda x: lib.F.dropout(x, 0.5), randomness=randomness)(xs)


@behaviour("vmap, randomness='error'")
def _(lib):
    return raised(lambda: mapped(lib, "error"))


@behaviour("vmap, randomness='error', in eval mode or with p = 0")
def _(lib):
    return raised(lambda: torch.func.vmap(lambda x: lib.F.dropout(lib.F.dropout(x, 0.5, False), 0.0))(torch.ones(3, 4)))


@behaviour("vmap, randomness='same': slices")
def _(lib):
    y = mapped(lib, "same")
    return "equal" if torch.equal(y, y[:1].expand_as(y)) else "differ"


@behaviour("vmap, randomness='different': slices")
def _(lib):
    return "all differ" if len(mapped(lib, "different").unique(dim=0)) == 6 else "some are equal"


@behaviour("torch.export of a model in eval mode: dropout in the graph")
def _(lib):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), *layers(lib)[:1], torch.nn.Linear(4, 2)).eval()
    graph = torch.export.export(model, (torch.randn(5, 3),)).run_decompositions().graph
    return str(any("dropout" in str(node.target) for node in graph.nodes))


@behaviour(
    "torch.jit.script", deliberate="TorchScript knows no keys; the message names revert, which puts torch's layer back"
)
def _(lib):
    def script():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(torch.nn.Sequential(*layers(lib)[:1]))

    return raised(script)


@behaviour("memory kept for backward, bytes per float32 element", deliberate="the mask is drawn again, not stored")
def _(lib):
    kept = []
    x = torch.ones(4000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        lib.F.dropout(x, 0.5)
    return f"{round(sum(kept) / 4000)}"


@behaviour("alpha_dropout, feature_alpha_dropout: default of training")
def _(lib):
    x = torch.randn(4, 6, 5)
    return one("False" if f(x, 0.5) is x else "True" for f in (lib.F.alpha_dropout, lib.F.feature_alpha_dropout))


@behaviour("alpha_dropout, p = 1")
def _(lib):
    return one(
        "zeros" if not f(torch.randn(4, 6, 5), 1.0, True).any() else "other"
        for f in (lib.F.alpha_dropout, lib.F.feature_alpha_dropout)
    )


@behaviour("AlphaDropout, FeatureAlphaDropout: two values of a zero input, p = 0.3")
def _(lib):
    outputs = [getattr(lib.nn, name)(0.3)(torch.zeros(50, 40, 2)) for name in ("AlphaDropout", "FeatureAlphaDropout")]
    return "; ".join(" and ".join(f"{value:.4f}" for value in output.unique().tolist()) for output in outputs)


@behaviour("AlphaDropout, MultiheadAttention, LSTM: isinstance of torch's")
def _(lib):
    layers = lib.nn.AlphaDropout(), lib.nn.MultiheadAttention(4, 2, dropout=0.1), lib.nn.LSTM(3, 4, 2, dropout=0.1)
    kinds = torch.nn.AlphaDropout, torch.nn.MultiheadAttention, torch.nn.LSTM
    return all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True))


@behaviour("MultiheadAttention, LSTM: state_dict")
def _(lib):
    layers = lib.nn.MultiheadAttention(4, 2, dropout=0.1), lib.nn.LSTM(3, 4, 2, dropout=0.1)
    return ", ".join(name for layer in layers for name in layer.state_dict())


@pytest.mark.parametrize(("text", "function", "deliberate"), BEHAVIOURS, ids=[text for text, _, _ in BEHAVIOURS])
def test_behaviour(text, function, deliberate):
    theirs, ours = function(TORCH), function(OURS)
    if deliberate is None:
        assert ours == theirs
    else:
        assert ours != theirs, "no longer a difference: drop the reason"


def table():
    rows = ["| behaviour | torch | puredrop | |", "|---|---|---|---|"]
    for text, function, deliberate in BEHAVIOURS:
        torch.manual_seed(0)
        theirs, ours = function(TORCH), function(OURS)
        rows.append(
            f"| {text} | {theirs} | {'the same' if ours == theirs else ours} | {deliberate or ''} |".replace("  ", " ")
        )
    return "\n".join(rows)


def test_the_page_is_this_table():
    text = PAGE.read_text()
    head, _, rest = text.partition("<!-- table -->\n")
    _, _, tail = rest.partition("\n<!-- end -->")
    written = f"{head}<!-- table -->\n{table()}\n<!-- end -->{tail}"
    if os.environ.get("PUREDROP_WRITE_DOCS"):
        PAGE.write_text(written)
    assert PAGE.read_text() == written
