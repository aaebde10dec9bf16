"""Random calls of every function and every layer that drops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks.arguments import FLOATS, any_key, any_place, any_rate, any_tensor, any_wrong_input, any_wrong_value, values
from attacks.outcome import Choices
from puredrop import Key, keep_mask
from puredrop import functional as F
from puredrop import nn as layers

__all__ = ["Call", "any_call"]


@dataclass
class Call:
    """A call, not yet made.

    Args:
        text: what is called with which arguments, for reproductions.
        run: makes the call and returns its result.
        inputs: tensors that get a gradient where they can have one.
        tolerance: 0 where two backends must agree bit for bit; else how many times the dtype's precision, relative
            to the largest value, since sums are taken in another order.
        scale: of gradients that may cancel: what their error is relative to where they are smaller.
        parameters: of the layer, which the call makes; they get a gradient, too.
    """

    text: str
    run: Callable[[], Any]
    inputs: tuple[Tensor, ...]
    tolerance: float = 0.0
    scale: float = 0.0
    parameters: list[Tensor] = field(default_factory=list)


def any_call(choices: Choices) -> Call:
    """Return a random call."""
    call = choices.choice(_CALLS)(choices)
    described = ", ".join(f"{_text(tensor)}" for tensor in call.inputs)
    call.text += f" of {described}"
    return call


def _text(value: Any) -> str:
    if isinstance(value, Tensor) and value.dim():
        gradient = " with gradient" if value.requires_grad else ""
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)} strides {value.stride()}{gradient}"
    return repr(value)


def _input(choices: Choices, rank: int | None = None) -> Tensor:
    """Return an input that may need a gradient: a leaf, or the result of an operation, which may be written to."""
    tensor = any_tensor(choices, rank)
    if tensor.dtype in FLOATS and choices.chance(0.4):
        tensor.requires_grad_()
        if choices.chance(0.8):
            return tensor * 1
    return tensor


def _call(
    choices: Choices, function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0, **named: Any
) -> Call:
    """Return the call of a function; in one of twelve an argument is of another type than the function takes."""
    given: list[Any] = list(inputs)
    if given and choices.chance(0.03):
        at = choices.randrange(len(given))
        given[at] = any_wrong_input(choices, given[at])
    elif choices.chance(0.055):
        named[choices.choice(list(named))] = any_wrong_value(choices)
    described = ", ".join(f"{name}={_text(value)}" for name, value in named.items())
    tensors = tuple(value for value in given if isinstance(value, Tensor))
    odd = "".join(f", {value!r}" for value in given if not isinstance(value, Tensor))
    return Call(f"{function.__name__}({described}{odd})", lambda: function(*given, **named), tensors, tolerance)


def _elements(choices: Choices) -> Call:
    function = choices.choice((F.dropout, F.dropout, F.dropout, F.relu_dropout, F.gaussian_dropout))
    x = _input(choices)
    return _call(
        choices, function, x, p=any_rate(choices), training=choices.chance(0.95), inplace=choices.chance(0.2),
        key=any_key(choices), **any_place(choices, x.shape),
    )  # fmt: skip


def _gelu(choices: Choices) -> Call:
    x = _input(choices)
    call = _call(
        choices, F.gelu_dropout, x, p=any_rate(choices), training=choices.chance(0.95),
        approximate=choices.choice(("none", "none", "tanh")), key=any_key(choices), tolerance=8.0,
        **any_place(choices, x.shape),
    )  # fmt: skip
    call.scale = 0.25  # two terms of gelu's derivative cancel near -0.75
    return call


def _channels(choices: Choices) -> Call:
    function = choices.choice((
        F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.drop_path,
    ))  # fmt: skip
    x = _input(choices, choices.choice((None, 2, 3, 4, 5)))
    more: dict[str, Any] = {}
    if function is F.drop_path:
        more = {"mode": choices.choice(("row", "batch", "rows")), "scale_by_keep": choices.chance(0.5)}
    return _call(
        choices, function, x, p=any_rate(choices), training=choices.chance(0.95), inplace=choices.chance(0.2),
        key=any_key(choices), **more, **any_place(choices, x.shape, shared=False),
    )  # fmt: skip


def _blocks(choices: Choices) -> Call:
    x = _input(choices, 4 if choices.chance(0.95) else None)
    return _call(
        choices, F.drop_block2d, x, p=any_rate(choices), block_size=choices.choice((1, 2, 3, 5, 7)),
        training=choices.chance(0.95), inplace=choices.chance(0.2), couple_channels=choices.chance(0.5),
        key=any_key(choices), **any_place(choices, x.shape, shared=False),
    )  # fmt: skip


def _sums(choices: Choices) -> Call:
    x = _input(choices)
    shape = [1 if choices.chance(0.2) else size for size in x.shape]
    if choices.chance(0.1):
        shape = [2, *shape]
    residual = values(choices, shape, x.dtype if choices.chance(0.9) else torch.float64)
    if choices.chance(0.3) and residual.dim() > 1:
        residual = residual.transpose(0, 1).contiguous().transpose(0, 1)
    common = {
        "p": any_rate(choices),
        "training": choices.chance(0.95),
        "key": any_key(choices),
        **any_place(choices, x.shape),
    }
    if choices.chance(0.5):
        return _call(choices, F.dropout_add, x, residual, **common)
    bias = values(choices, x.shape[-1:] if choices.chance(0.8) else [1] * x.dim(), x.dtype)
    return _call(choices, F.bias_dropout_add, x, bias, residual, **common)


def _masks(choices: Choices) -> Call:
    x = any_tensor(choices)
    named = {"shape": tuple(x.shape), "p": any_rate(choices), "key": any_key(choices), **any_place(choices, x.shape)}
    return _call(choices, keep_mask, **named)


def _attention(choices: Choices) -> Call:
    x = _input(choices, choices.choice((2, 3, 4)))
    sizes = (*x.shape[:-2], choices.choice((0, 1, 3, 17)), x.shape[-1])
    other = values(choices, sizes, x.dtype)
    weights = (*x.shape[:-1], sizes[-2])
    named: dict[str, Any] = {"is_causal": choices.chance(0.2)}
    if choices.chance(0.3):
        shape = [1 if choices.chance(0.3) else size for size in weights[choices.randrange(len(weights)) :]]
        named["attn_mask"] = values(choices, shape, torch.bool if choices.chance(0.6) else x.dtype)
    if choices.chance(0.2):
        named["scale"] = choices.choice((1.0, 0.0, 0.3, -1.0))
    if choices.chance(0.1):
        named["enable_gqa"] = True
    return _call(
        choices, F.scaled_dot_product_attention, x, other, other.clone(), dropout_p=any_rate(choices), tolerance=64.0,
        dropout_key=any_key(choices), **named, **any_place(choices, weights, shared=False),
    )  # fmt: skip


def _layer(choices: Choices, make: Callable[[], nn.Module], *inputs: Tensor, tolerance: float = 0.0) -> Call:
    """Return the call of a layer, which is made in the call, so that what its constructor refuses counts, too."""
    training = choices.chance(0.95)
    parameters: list[Tensor] = []

    def run() -> Any:
        module = make().train(training)
        parameters[:] = module.parameters()
        return module(*inputs)

    return Call(f"{make.__doc__} training={training}", run, inputs, tolerance, parameters=parameters)


def _named(name: str, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    make.__doc__ = name
    return make


_OPTIONS: dict[Any, tuple[str, ...]] = {
    layers.Dropout: ("p", "key", "inplace", "shared_dims"),
    **dict.fromkeys((layers.Dropout1d, layers.Dropout2d, layers.Dropout3d), ("p", "key", "inplace")),
    **dict.fromkeys((layers.AlphaDropout, layers.FeatureAlphaDropout), ("p", "key", "inplace")),
    layers.GaussianDropout: ("p", "key", "inplace"),
    layers.DropPath: ("p", "key", "inplace", "mode", "scale_by_keep"),
    layers.LockedDropout: ("p", "key", "inplace", "batch_first"),
    layers.DropBlock2d: ("p", "key", "inplace", "block_size", "couple_channels"),
    layers.DropConnect: ("p", "key", "shared_dims"),
    layers.PatchDropout: ("p", "key", "num_prefix_tokens", "ordered", "return_indices"),
}
"""Layers that drop without weights, and the arguments of their constructors."""


def _drop_layers(choices: Choices) -> Call:
    kind = choices.choice(list(_OPTIONS))
    key = any_key(choices)
    key = key if key is None or isinstance(key, Key) or choices.chance(0.1) else Key(3)
    options: dict[str, Any] = {"p": any_rate(choices), "key": key}
    if choices.chance(0.1):
        options[choices.choice(_OPTIONS[kind])] = any_wrong_value(choices)
    ranks: dict[Any, int] = {layers.DropBlock2d: 4, layers.PatchDropout: 3, layers.LockedDropout: 3}
    x = _input(choices, ranks.get(kind) if choices.chance(0.9) else None)
    make: Any = kind
    return _layer(choices, _named(f"{kind.__name__}({options})", lambda: make(**options)), x)


def _word_layers(choices: Choices) -> Call:
    p, key = any_rate(choices), choices.choice((None, Key(choices.getrandbits(64))))
    ids = torch.randint(0, 20, (choices.randint(0, 5), choices.randint(1, 9)), generator=choices.torch)
    if choices.chance(0.1):
        ids = ids.to(choices.choice((torch.float32, torch.bool, torch.int32, torch.uint8)))
    if choices.chance(0.5):
        return _layer(choices, _named(f"WordDropout(0, p={p!r})", lambda: layers.WordDropout(0, p, key=key)), ids)

    def make() -> nn.Module:
        torch.default_generator.manual_seed(0)
        return layers.EmbeddingDropout(nn.Embedding(20, 5), p, key=key)

    return _layer(choices, _named(f"EmbeddingDropout(p={p!r}, key={key!r})", make), ids)


def _weight_layers(choices: Choices) -> Call:
    """Layers with weights; their rates are mostly numbers, since torch's constructors take no others."""
    p = choices.choice((0.0, 0.1, 0.5, 0.9, 1.0)) if choices.chance(0.9) else any_rate(choices)
    key = choices.choice((None, Key(choices.getrandbits(64))))
    name = choices.choice(("LSTM", "GRU", "RNN", "MultiheadAttention", "WeightDrop", "LayerDrop"))
    length, batch = choices.choice((0, 1, 3, 8)), choices.choice((0, 1, 2, 5))
    x = torch.randn(length, batch, 8, generator=choices.torch, requires_grad=choices.chance(0.5))

    def make() -> nn.Module:
        torch.default_generator.manual_seed(0)
        if name == "MultiheadAttention":
            return layers.MultiheadAttention(8, 2, dropout=p, key=key)
        if name == "WeightDrop":
            return layers.WeightDrop(nn.Linear(8, 5), p, ["weight"], key=key)
        if name == "LayerDrop":
            return layers.LayerDrop(nn.Linear(8, 8), p, key=key)
        recurrent: nn.Module = getattr(layers, name)(8, 6, 2, dropout=p, key=key)
        return recurrent

    inputs = (x, x, x) if name == "MultiheadAttention" else (x,)
    return _layer(choices, _named(f"{name}(p={p!r}, key={key!r})", make), *inputs, tolerance=64.0)


# A call that is listed more often is drawn more often.
_CALLS = (
    *[_elements] * 8, *[_sums] * 4, _gelu, *[_channels] * 4, _blocks, *[_masks] * 2, _attention, *[_drop_layers] * 3,
    _word_layers, _weight_layers,
)  # fmt: skip
