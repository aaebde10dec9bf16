"""torch.fx: our layers are one node each, as torch's are, and our functions one call each."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from oracles import same_bits
from puredrop import Key
from puredrop import functional as ours
from puredrop.nn.keyed import HasKey
from puredrop.thinning.chains import find_chains


class Call(nn.Module):
    """A function of the input and the training flag."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, self.training)


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = puredrop.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        return x + y


class Recur(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net = kind(8, 4, num_layers=2, dropout=0.5)

    def forward(self, x):
        output, _ = self.net(x)
        return output


class Tokens(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers((x.abs() * 4).long().clamp(0, 8))


LAYERS = {
    "Dropout": (lambda: puredrop.nn.Dropout(0.5), (4, 8)),
    "Dropout1d": (lambda: puredrop.nn.Dropout1d(0.5), (4, 8, 3)),
    "Dropout2d": (lambda: puredrop.nn.Dropout2d(0.5), (4, 8, 3, 3)),
    "Dropout3d": (lambda: puredrop.nn.Dropout3d(0.5), (4, 8, 3, 3, 3)),
    "AlphaDropout": (lambda: puredrop.nn.AlphaDropout(0.5), (4, 8)),
    "FeatureAlphaDropout": (lambda: puredrop.nn.FeatureAlphaDropout(0.5), (4, 8, 3)),
    "GaussianDropout": (lambda: puredrop.nn.GaussianDropout(0.5), (4, 8)),
    "DropPath": (lambda: puredrop.nn.DropPath(0.5), (16, 8)),
    "DropBlock2d": (lambda: puredrop.nn.DropBlock2d(0.4, 2), (4, 2, 8, 8)),
    "LockedDropout": (lambda: puredrop.nn.LockedDropout(0.5), (5, 4, 8)),
    "PatchDropout": (lambda: puredrop.nn.PatchDropout(0.5, ordered=True), (4, 21, 8)),
    "WordDropout": (lambda: Tokens(puredrop.nn.WordDropout(0, 0.5)), (4, 20)),
    "EmbeddingDropout": (lambda: Tokens(puredrop.nn.EmbeddingDropout(nn.Embedding(9, 4), 0.5)), (4, 20)),
    "LayerDrop": (lambda: nn.Sequential(*(puredrop.nn.LayerDrop(nn.Linear(8, 8), 0.5) for _ in range(12))), (4, 8)),
    "DropConnect": (lambda: puredrop.nn.drop_connect(nn.Linear(8, 4)), (4, 8)),
    "WeightDrop": (lambda: puredrop.nn.WeightDrop(nn.Linear(8, 4), 0.5, ["weight"]), (4, 8)),
    "MultiheadAttention": (Attend, (4, 6, 8)),
    "LSTM": (lambda: Recur(puredrop.nn.LSTM), (5, 4, 8)),
    "GRU": (lambda: Recur(puredrop.nn.GRU), (5, 4, 8)),
    "RNN": (lambda: Recur(puredrop.nn.RNN), (5, 4, 8)),
}


def test_all_layers_are_here():
    assert {name for name in puredrop.nn.__all__ if name[0].isupper()} == set(LAYERS)


def drawn(model, x):
    torch.manual_seed(3)
    return model(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_node_that_follows_train_and_eval(name):
    make, shape = LAYERS[name]
    model, x = nn.Sequential(nn.Identity(), make()), torch.randn(shape)
    traced = torch.fx.symbolic_trace(model)
    for mode in (True, False, True):
        model.train(mode), traced.train(mode)
        assert same_bits(drawn(traced, x), drawn(model, x))
        assert mode or same_bits(traced(x), traced(x))
    assert not torch.equal(drawn(traced, x), traced.eval()(x))
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert any(isinstance(layer, HasKey) for node in nodes for layer in traced.get_submodule(node.target).modules())
    assert not any(node.target in OURS for node in traced.graph.nodes)
    changed = copy.deepcopy(traced).train()
    assert same_bits(drawn(changed, x), drawn(model.train(), x))


FUNCTIONS = {
    "dropout": lambda x, on: ours.dropout(x, 0.5, on),
    "dropout, more": lambda x, on: ours.dropout(x, 0.4, training=on, key=Key(2**64 - 1), shared_dims=range(1, 2)),
    "window": lambda x, on: ours.dropout(x, 0.5, on, key=Key(1), window=puredrop.Window((40, 8, 3, 3), (5, 0, 0, 0))),
    "dropout1d": lambda x, on: ours.dropout1d(x.flatten(2), 0.5, on),
    "dropout2d": lambda x, on: ours.dropout2d(x, 0.5, on),
    "dropout3d": lambda x, on: ours.dropout3d(x.unsqueeze(2), 0.5, on),
    "alpha_dropout": lambda x, on: ours.alpha_dropout(x, 0.5, on),
    "feature_alpha_dropout": lambda x, on: ours.feature_alpha_dropout(x, 0.5, on),
    "gaussian_dropout": lambda x, on: ours.gaussian_dropout(x, 0.5, on),
    "drop_path": lambda x, on: ours.drop_path(x, 0.5, on, mode="row", scale_by_keep=False),
    "drop_block2d": lambda x, on: ours.drop_block2d(x, 0.4, 2, on),
    "relu_dropout": lambda x, on: ours.relu_dropout(x, 0.5, on),
    "gelu_dropout": lambda x, on: ours.gelu_dropout(x, 0.5, on, approximate="tanh"),
    "dropout_add": lambda x, on: ours.dropout_add(x, x.sin(), 0.5, on),
    "bias_dropout_add": lambda x, on: ours.bias_dropout_add(x, x.sin(), x.cos(), 0.5, on),
    "attention": lambda x, on: ours.scaled_dot_product_attention(x, x, x, dropout_p=0.5 * on, is_causal=True),
    "keep_mask": lambda x, on: x * ours.keep_mask(x.shape, 0.5, Key(3)) if on else x,
    "keep_mask of sizes": lambda x, on: x * ours.keep_mask((x.shape[0], 1, 1, 1), 0.5, Key(3)) if on else x,
    "tensor rate": lambda x, on: ours.dropout(x, torch.tensor(0.5), on),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_call_with_the_flag_of_the_trace(name):
    x = torch.randn(16, 8, 3, 3)
    for mode in (True, False):
        model = Call(FUNCTIONS[name]).train(mode)
        traced = torch.fx.symbolic_trace(model)
        assert same_bits(drawn(traced, x), drawn(model, x))
        calls = [node for node in traced.graph.nodes if node.op == "call_function" and node.target in OURS]
        assert len(calls) == 1 or not mode
        assert mode is False or not torch.equal(drawn(traced, x), FUNCTIONS[name](x, False))


OURS = {getattr(ours, name) for name in ours.__all__}


def test_a_pinned_graph_module_has_masks_of_its_own_paths():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.theirs = nn.Linear(8, 8), puredrop.nn.Dropout(0.5), nn.Dropout(0.3)

        def forward(self, x):
            return ours.dropout(
                F.dropout(self.theirs(self.drop(self.first(x))), 0.2, self.training), 0.1, self.training
            )

    model, x = Net(), torch.randn(6, 8)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    outputs = []
    for net in (model, traced):
        with puredrop.reproducible(net, seed=1):
            outputs.append(net(x))
    assert same_bits(*outputs)


@pytest.mark.parametrize("layer", [nn.Dropout, puredrop.nn.Dropout])
@pytest.mark.parametrize("mode", [True, False])
def test_a_pinned_model_is_not_traced(layer, mode):
    model = nn.Sequential(nn.Linear(8, 8), layer(0.5)).train(mode)
    with puredrop.reproducible(model) as run:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"pinned model.*trace the model before puredrop.reproducible"):
                torch.fx.symbolic_trace(model)
            model(torch.randn(2, 8))
        with pytest.raises(RuntimeError, match=r"pinned model.*trace the model before puredrop.reproducible"):
            torch.fx.symbolic_trace(nn.Sequential(model, nn.ReLU()))
        torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), puredrop.nn.Dropout(0.5)))
        assert run.step == 0
    torch.fx.symbolic_trace(model)
    assert torch.fx.Tracer.trace.__module__ == "torch.fx._symbolic_trace"


def test_a_layer_that_is_traced_itself_is_a_call_of_its_function_as_torchs_is():
    for kind in (nn.Dropout, puredrop.nn.Dropout):
        traced = torch.fx.symbolic_trace(kind(0.5))
        assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_function", "output"]


def test_what_is_no_tensor_is_refused_as_ever():
    for call in (lambda: ours.dropout([1.0]), lambda: puredrop.nn.Dropout()([1.0]), lambda: ours.dropout_add([1.0], 2)):
        with pytest.raises(TypeError, match=r"input is list; expected a torch.Tensor"):
            call()
    with pytest.raises(TypeError, match=r"residual is float; expected a torch.Tensor"):
        ours.dropout_add(torch.randn(3), 2.0)


def test_the_tracer_of_quantization():
    quantization = pytest.importorskip("torch.ao.quantization.fx.tracer")
    model = nn.Sequential(nn.Linear(8, 8), puredrop.nn.Dropout(0.5), puredrop.nn.DropPath(0.5))
    graph = quantization.QuantizationTracer([], []).trace(model)
    assert [node.op for node in graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]


def test_the_feature_extraction_of_torchvision():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(nn.Linear(8, 8), puredrop.nn.Dropout(0.5), nn.ReLU())
    features = extraction.create_feature_extractor(model, ["1"])
    x = torch.randn(4, 8)
    assert same_bits(drawn(features.train(), x)["1"], drawn(model[:2].train(), x))
    assert same_bits(features.eval()(x)["1"], model[:2].eval()(x))


def test_batchwise_names_calls_of_our_functions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)

        def forward(self, x):
            return ours.relu_dropout(self.last(self.drop(torch.relu(self.first(x)))), 0.5, self.training)

    found = find_chains(Net())
    assert [chain.path for chain in found.chains] == ["drop"]
    assert found.skipped[":relu_dropout0"].startswith("it is a function call, which batchwise cannot change")
