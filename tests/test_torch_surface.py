"""Every behaviour of torch's dropout that users rely on, torch's and ours side by side.

Each entry runs the same code with both libraries and says in a few words what happened; the words must be equal unless
the entry gives the reason for a deliberate difference. docs/torch-surface.md is this table; write it anew with
PUREDROP_WRITE_DOCS=1.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

from behaviours import BEHAVIOURS, OURS, TORCH, behaviour, layers, one, raised

PAGE = Path(__file__).parents[1] / "docs/torch-surface.md"


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


@behaviour("torch.fx.symbolic_trace: nodes of a layer / of the function")
def _(lib):
    class Call(torch.nn.Module):
        def forward(self, x):
            return lib.F.dropout(x, 0.5, self.training)

    models = (torch.nn.Sequential(lib.nn.Dropout(0.5)), Call())
    return " / ".join(str([n.op for n in torch.fx.symbolic_trace(m).graph.nodes][1:-1]) for m in models)


def of_nested(lib, layout, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=layout)
    return raised(lambda: lib.F.dropout(x, 0.5, training))


@behaviour("dropout of a jagged tensor: training / eval")
def _(lib):
    return f"{of_nested(lib, torch.jagged, True)} / {of_nested(lib, torch.jagged, False)}"


@behaviour(
    "dropout of a nested tensor that is not jagged: training / eval",
    deliberate="an element has no index that a mask could follow; the message says how to pad",
)
def _(lib):
    return f"{of_nested(lib, torch.strided, True)} / {of_nested(lib, torch.strided, False)}"


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


@behaviour("MultiheadAttention: a transposed padding mask / an integer mask")
def _(lib):
    layer, x = lib.nn.MultiheadAttention(8, 2, dropout=0.1), torch.randn(5, 3, 8)
    masks = {"key_padding_mask": torch.zeros(5, 3).bool()}, {"attn_mask": torch.zeros(5, 5).long()}
    return " / ".join(raised(lambda mask=mask: layer(x, x, x, **mask)) for mask in masks)


@behaviour("MultiheadAttention: an empty batch / no queries")
def _(lib):
    layer, x = lib.nn.MultiheadAttention(8, 2, dropout=0.1), torch.randn(5, 3, 8)
    return " / ".join(str(tuple(layer(q, k, k)[0].shape)) for q, k in ((x[:, :0], x[:, :0]), (x[:0], x)))


@behaviour("scaled_dot_product_attention: is_causal with a mask / an integer mask / a mask that enlarges")
def _(lib):
    x = torch.randn(2, 3, 4, 8)
    named = [{"is_causal": True, "attn_mask": torch.ones(4, 4).bool()}]
    named += [{"attn_mask": torch.ones(4, 4).long()}, {"attn_mask": torch.ones(2, 2, 3, 4, 4).bool()}]
    function = lib.F.scaled_dot_product_attention
    return " / ".join(raised(lambda n=n: function(x, x, x, dropout_p=0.5, **n)) for n in named)


@behaviour(
    "scaled_dot_product_attention: dropout_p = 1.5", deliberate="the class that a rate has in every function here"
)
def _(lib):
    return raised(lambda: lib.F.scaled_dot_product_attention(*[torch.randn(2, 3, 4, 8)] * 3, dropout_p=1.5))


@behaviour("scaled_dot_product_attention: causal_lower_right as the mask")
def _(lib):
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8)
    mask, bias = torch.ones(4, 6).bool().tril(2), causal_lower_right(4, 6)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, mask)
    found = lib.F.scaled_dot_product_attention(q, k, k, bias, 1e-15)
    return "as the bool mask" if torch.allclose(found, expected, atol=1e-5) else "other"


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
