"""Exchange other libraries' dropout layers for ours and back, in a whole model, without touching its parameters."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from puredrop import nn
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey

__all__ = ["Conversion", "Swapped", "as_ours", "convert", "revert"]

_SAME = (
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
    *("MultiheadAttention", "LSTM", "GRU", "RNN"),
)
_OURS: dict[type[Module], type[Module]] = {getattr(torch.nn, name): getattr(nn, name) for name in _SAME}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


class Swapped:
    """Abstract: a layer that goes by another class for a while, such as one that runs batchwise."""

    @property
    @abstractmethod
    def was(self) -> type[Module]:
        """The class it had."""

    @abstractmethod
    def back(self) -> None:
        """Be the layer again that it was."""


@dataclass(frozen=True)
class _Rule:
    """How a layer of another library is one of ours.

    Args:
        ours: our class.
        attributes: theirs -> the attributes that ours has.
        rate: name of their rate, which follows ours when the layer is put back.
        refuses: theirs -> why it cannot be exchanged, or None.
    """

    ours: type[Module]
    attributes: Callable[[Any], dict[str, Any]]
    rate: str
    refuses: Callable[[Any], str | None] = lambda layer: None


def _drop_path(layer: Any) -> dict[str, Any]:
    return {"p": layer.drop_prob or 0.0, "mode": "row", "scale_by_keep": getattr(layer, "scale_by_keep", True)}


def _timm_block(layer: Any) -> dict[str, Any]:
    rate = (layer.drop_prob or 0.0) * layer.gamma_scale
    return {"p": rate, "block_size": layer.block_size, "couple_channels": layer.couple_channels}


def _refuses_timm_block(layer: Any) -> str | None:
    return "with_noise or without scale_by_keep" if layer.with_noise or not layer.scale_by_keep else None


def _patches(layer: Any) -> dict[str, Any]:
    returns = type(layer).__name__ == "PatchDropoutWithIndices" or getattr(layer, "return_indices", False)
    return {
        "p": layer.prob,
        "num_prefix_tokens": layer.num_prefix_tokens,
        "ordered": layer.ordered,
        "return_indices": returns,
    }


# By library and class, so that none of them need be there.
_RULES = {
    ("timm", "DropPath"): _Rule(nn.DropPath, _drop_path, "drop_prob"),
    ("timm", "DropBlock2d"): _Rule(nn.DropBlock2d, _timm_block, "drop_prob", _refuses_timm_block),
    ("timm", "PatchDropout"): _Rule(nn.PatchDropout, _patches, "prob"),
    ("timm", "PatchDropoutWithIndices"): _Rule(nn.PatchDropout, _patches, "prob"),
    ("torchvision", "StochasticDepth"): _Rule(
        nn.DropPath, lambda layer: {"p": layer.p, "mode": layer.mode, "scale_by_keep": True}, "p"
    ),
    ("torchvision", "DropBlock2d"): _Rule(
        nn.DropBlock2d, lambda layer: {"p": layer.p, "block_size": layer.block_size, "couple_channels": False}, "p"
    ),
}


def _rule(layer: Module) -> _Rule | None:
    library, name = type(layer).__module__.partition(".")[0], type(layer).__name__
    if library == "transformers" and name.endswith("DropPath"):  # each model file has one of its own
        return _RULES["timm", "DropPath"]
    return _RULES.get((library, name))


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Args:
        replaced: path -> (their class, ours), by name.
        skipped: path -> why a layer that drops stayed as it was.
    """

    replaced: dict[str, tuple[str, str]]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{path or '(model)'}: {old} -> puredrop.nn.{new}" for path, (old, new) in self.replaced.items()]
        lines += [f"{path or '(model)'}: left as it is, {why}" for path, why in self.skipped.items()]
        return "\n".join([*lines, "functional dropout is no module: puredrop.sites lists it"])


@overload
def convert(model: Module, inplace: bool = True, *, report: Literal[False] = False) -> Module: ...


@overload
def convert(model: Module, inplace: bool = True, *, report: Literal[True]) -> tuple[Module, Conversion]: ...


def convert(model: Module, inplace: bool = True, *, report: bool = False) -> Module | tuple[Module, Conversion]:
    """Put our layers in the place of torch's, timm's, torchvision's and transformers' dropout layers.

    Exchanged are torch's dropout layers, MultiheadAttention, LSTM, GRU and RNN; DropPath, DropBlock2d and PatchDropout
    of timm; StochasticDepth and DropBlock2d of torchvision; DropPath of transformers. Arguments, training mode, hooks,
    shared modules and the state_dict stay. Only layers of exactly these classes are exchanged: a subclass may do
    something of its own.

    Args:
        model: any module; it may be a dropout layer itself.
        inplace: change the model itself, else a deep copy.
        report: return what was done as well.

    Returns:
        The model (another object where the model itself is a dropout layer); with report, it and a `Conversion`, which
        says what was exchanged and what was left, and prints.

    >>> convert(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)))[1].__class__.__module__
    'puredrop.nn.element'
    """
    model = model if inplace else copy.deepcopy(model)
    if not report:
        return _exchange(model, as_ours)
    done = _conversion(model)
    return _exchange(model, as_ours), done


def _conversion(model: Module) -> Conversion:
    """What there is to do."""
    replaced, skipped = {}, {}
    for path, layer in model.named_modules():
        rule = _rule(layer)
        why = rule.refuses(layer) if rule else None
        if why is not None:
            skipped[path] = why
        elif rule or type(layer) in _OURS:
            ours = rule.ours if rule else _OURS[type(layer)]
            replaced[path] = (f"{type(layer).__module__.partition('.')[0]} {type(layer).__name__}", ours.__name__)
        elif holds_dropout(layer) and not isinstance(layer, HasKey):
            skipped[path] = f"{type(layer).__module__}.{type(layer).__name__} is none of the classes that are known"
    return Conversion(replaced, skipped)


def revert(model: Module, inplace: bool = True) -> Module:
    """Put the layers back that `convert` exchanged, and torch's in the place of ours; keys are given up.

    Weights dropped by `drop_connect` are plain parameters again, and what ran batchwise runs as before.

    Args:
        model: any module; it may be one of our layers itself.
        inplace: change the model itself, else a deep copy.

    Returns:
        The model (another object where the model itself is one of our layers).

    Raises:
        ValueError: for a layer that torch has no equal of, by its path; nothing is changed then.

    >>> revert(torch.nn.Sequential(nn.Dropout(0.3)))[0].__class__.__module__
    'torch.nn.modules.dropout'
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.shared_dims:
            raise ValueError(
                f"{path or 'the model'} has shared_dims={module.shared_dims}, which torch.nn.Dropout lacks; "
                "replace it by hand, Dropout1d to Dropout3d share the dimensions of a channel"
            )
        kind = module.was if isinstance(module, Swapped) else type(module)
        is_known = kind in _TORCHS or hasattr(module, "_exchanged_for") or isinstance(module, nn.DropConnect)
        is_known |= kind in _OURS
        if isinstance(module, HasKey) and not is_known:
            raise ValueError(
                f"{path or 'the model'} is {type(module).__name__}, which torch has no equal of; replace it by hand"
            )
    model = model if inplace else copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, Swapped):
            module.back()
        for name, steps in list(getattr(module, "parametrizations", {}).items()):
            if any(isinstance(step, nn.DropConnect) for step in steps):
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    return _exchange(model, _as_theirs)


def _exchange(model: Module, other: Callable[[Module], Module | None]) -> Module:
    replaced: dict[Module, Module] = {}  # one module in two places stays one
    if (whole := other(model)) is not None:
        return whole
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children leaves out a second name of one module
            if child is None:
                continue
            if child not in replaced and (new := other(child)) is not None:
                replaced[child] = new
            parent._modules[name] = replaced.get(child, child)
    return model


def as_ours(layer: Module) -> Module | None:
    """The same layer as one of ours, None where there is none: hooks, mode and arguments are its attributes."""
    rule = _rule(layer)
    if rule is None:
        kind = _OURS.get(type(layer))
        return None if kind is None else _as(kind, layer)
    if rule.refuses(layer) is not None:
        return None
    attributes = {"inplace": False, **vars(layer), **rule.attributes(layer), "key": None}
    return _as(rule.ours, layer, {**attributes, "_exchanged_for": layer})


def _as_theirs(layer: Module) -> Module | None:
    if hasattr(layer, "_exchanged_for"):
        old: Any = layer._exchanged_for
        rule = _rule(old)
        assert rule is not None
        new = _as(type(old), layer, {name: value for name, value in vars(layer).items() if name in vars(old)})
        if layer.p != rule.attributes(old)["p"]:  # changed since
            setattr(new, rule.rate, layer.p)
        return new
    kind = _TORCHS.get(type(layer))
    if kind is None:
        return None
    return _as(kind, layer, {name: value for name, value in vars(layer).items() if name not in ("key", "shared_dims")})


def _as(kind: type[Module], module: Module, attributes: dict[str, Any] | None = None) -> Module:
    new = kind.__new__(kind)
    new.__dict__.update(vars(module) if attributes is None else attributes)
    return new
