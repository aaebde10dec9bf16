"""Exchange of a model's dropout layers for ours and back, without touching its parameters."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, overload

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from puredrop import nn
from puredrop._hints import hints
from puredrop._records import Records
from puredrop._torch import children
from puredrop.inspection.inputs import check_model
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey

__all__ = ["SEED_HINT", "Conversion", "Swapped", "as_ours", "convert", "revert"]

M = TypeVar("M", bound=Module)

SEED_HINT = "to make masks a function of a seed, call puredrop.reproducible(model, seed=...) afterwards"

_SAME_NAME = (
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
    *("MultiheadAttention", "LSTM", "GRU", "RNN"),
)
_OURS: dict[type[Module], type[Module]] = {getattr(torch.nn, name): getattr(nn, name) for name in _SAME_NAME}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


class Swapped:
    """Abstract base of a layer whose class is replaced for a while, such as one that runs batchwise."""

    @property
    @abstractmethod
    def original_class(self) -> type[Module]:
        """The layer's class before the swap."""

    @abstractmethod
    def restore_class(self) -> None:
        """Restore the layer's original class."""


@dataclass(frozen=True)
class _Rule:
    """Rule by which a layer of another library becomes one of ours.

    Args:
        ours: our class.
        attributes: function from their layer to the attributes of ours.
        rate: name of the attribute that holds their rate; `revert` writes our rate there.
        refuses: function from their layer to the reason why it cannot be exchanged, or None.
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


# Keyed by names, so that none of the libraries has to be installed.
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
    if library == "transformers" and name.endswith(
        "DropPath"
    ):  # every model file of transformers defines its own DropPath
        return _RULES["timm", "DropPath"]
    return _RULES.get((library, name))


@dataclass(frozen=True, repr=False)
class Conversion(Records):
    """Report of `convert` and `revert`: which layers were exchanged, and which were skipped and why.

    Prints as text; `to_dict`, `to_json` and `frame` hand it to other programs.

    Args:
        replaced: path of each exchanged layer -> (name of the old class, name of the new one); the names of other
            libraries' classes begin with the library.
        skipped: path of each layer that drops and was not exchanged -> the reason.

    >>> _, report = convert(torch.nn.Sequential(torch.nn.Dropout(0.3)), report=True)
    >>> report.to_dict()
    {'replaced': {'0': ['torch Dropout', 'Dropout']}, 'skipped': {}}
    """

    replaced: dict[str, tuple[str, str]]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the two dictionaries of the report."""
        return {"replaced": {path: list(pair) for path, pair in self.replaced.items()}, "skipped": dict(self.skipped)}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: each layer that drops, its old and new class, or why it was skipped."""
        pairs, reasons = self.replaced.values(), self.skipped.values()
        return {
            "path": [*self.replaced, *self.skipped],
            "old": [*(old for old, _ in pairs), *("" for _ in reasons)],
            "new": [*(new for _, new in pairs), *("" for _ in reasons)],
            "reason": [*("" for _ in pairs), *reasons],
        }

    def __str__(self) -> str:
        lines = [
            f"{path or '(model)'}: {_with_library(old)} -> {_with_library(new)}"
            for path, (old, new) in self.replaced.items()
        ]
        lines += [f"{path or '(model)'}: skipped, {reason}" for path, reason in self.skipped.items()]
        return "\n".join([*lines, "functional dropout is no module: puredrop.sites lists it"])


def _with_library(name: str) -> str:
    return name if " " in name else f"puredrop.nn.{name}"


@overload
def convert(model: M, inplace: bool = True, *, report: Literal[False] = False) -> M: ...


@overload
def convert(model: M, inplace: bool = True, *, report: Literal[True]) -> tuple[M, Conversion]: ...


@hints(seed=SEED_HINT, key=SEED_HINT)
def convert(model: M, inplace: bool = True, *, report: bool = False) -> M | tuple[M, Conversion]:
    """Exchange the dropout layers of torch, timm, torchvision and transformers for ours.

    Use it on a finished model to get the fast layers, and keys, without changing the model's code. Exchanged are
    torch's dropout layers, MultiheadAttention, LSTM, GRU and RNN; DropPath, DropBlock2d and PatchDropout of timm;
    StochasticDepth and DropBlock2d of torchvision; DropPath of transformers. Arguments, parameters, training mode,
    hooks, shared modules and the state_dict stay. Only layers of exactly these classes are exchanged: a subclass may
    do something else. For masks that depend on a seed, call `puredrop.reproducible(model, seed=...)` afterwards.

    Args:
        model: any module, possibly a dropout layer itself.
        inplace: whether the model itself is changed; otherwise a deep copy is changed and returned.
        report: whether a `Conversion` is returned as well.

    Returns:
        The model, typed as given (another object where the model itself is a dropout layer); with `report=True` the
        pair of the model and a `Conversion`, which lists what was exchanged and what was skipped.

    Raises:
        TypeError: if the model is not a module.

    >>> model = convert(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)))
    >>> type(model[1]).__module__
    'puredrop.nn.element'
    """
    check_model(model)
    model = model if inplace else copy.deepcopy(model)
    if not report:
        return _exchange(model, as_ours)
    plan = _plan(model)
    return _exchange(model, as_ours), plan


def _plan(model: Module) -> Conversion:
    """Plan the conversion without changing the model."""
    replaced, skipped = {}, {}
    for path, layer in model.named_modules():
        rule = _rule(layer)
        reason = rule.refuses(layer) if rule else None
        if reason is not None:
            skipped[path] = reason
        elif rule or type(layer) in _OURS:
            ours = rule.ours if rule else _OURS[type(layer)]
            replaced[path] = (_name(type(layer)), ours.__name__)
        elif holds_dropout(layer) and not isinstance(layer, HasKey):
            skipped[path] = (
                f"{type(layer).__module__}.{type(layer).__name__} is not among the classes that convert knows"
            )
    return Conversion(replaced, skipped)


@overload
def revert(model: M, inplace: bool = True, *, report: Literal[False] = False) -> M: ...


@overload
def revert(model: M, inplace: bool = True, *, report: Literal[True]) -> tuple[M, Conversion]: ...


def revert(model: M, inplace: bool = True, *, report: bool = False) -> M | tuple[M, Conversion]:
    """Exchange our layers for the layers that `convert` replaced, or for torch's where `convert` replaced none.

    Use it before a model is handed to code that expects torch's own layers. Keys are given up, weights dropped by
    `drop_connect` become plain parameters, and layers that run batchwise run as before.

    Args:
        model: any module, possibly one of our layers itself.
        inplace: whether the model itself is changed; otherwise a deep copy is changed and returned.
        report: whether a `Conversion` is returned as well.

    Returns:
        The model, typed as given (another object where the model itself is one of our layers); with `report=True` the
        pair of the model and a `Conversion`, which lists what was exchanged and what drops and was not ours.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if torch has no counterpart of a layer; the message names its path, and nothing is changed.

    >>> model = revert(torch.nn.Sequential(nn.Dropout(0.3)))
    >>> type(model[0]).__module__
    'torch.nn.modules.dropout'
    """
    check_model(model)
    _refuse_irreversible(model)
    plan = _reversal_plan(model) if report else None
    model = model if inplace else copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, Swapped):
            module.restore_class()
        for name, steps in list(getattr(module, "parametrizations", {}).items()):
            if any(isinstance(step, nn.DropConnect) for step in steps):
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    model = _exchange(model, _as_theirs)
    return model if plan is None else (model, plan)


def _reversal_plan(model: Module) -> Conversion:
    """Plan what `revert` exchanges without changing the model."""
    replaced, skipped = {}, {}
    for path, layer in model.named_modules():
        kind = layer.original_class if isinstance(layer, Swapped) else type(layer)
        if isinstance(layer, nn.DropConnect):
            replaced[path] = ("DropConnect", "torch Parameter")
        elif hasattr(layer, "_exchanged_for"):
            replaced[path] = (kind.__name__, _name(type(layer._exchanged_for)))
        elif kind in _TORCHS:
            replaced[path] = (kind.__name__, _name(_TORCHS[kind]))
        elif isinstance(layer, Swapped):
            replaced[path] = (f"batchwise {kind.__name__}", _name(kind))
        elif holds_dropout(layer):
            skipped[path] = f"{type(layer).__module__}.{type(layer).__name__} is not a layer of puredrop"
    return Conversion(replaced, skipped)


def _name(kind: type[Module]) -> str:
    """Return a class's name after that of its library."""
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _refuse_irreversible(model: Module) -> None:
    """Raise ValueError if torch has no counterpart of a layer."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.shared_dims:
            raise ValueError(
                f"{path or 'the model'} has shared_dims={module.shared_dims}, which torch.nn.Dropout lacks; "
                "replace it by hand, Dropout1d to Dropout3d share the dimensions of a channel"
            )
        kind = module.original_class if isinstance(module, Swapped) else type(module)
        is_known = kind in _TORCHS or hasattr(module, "_exchanged_for") or isinstance(module, nn.DropConnect)
        is_known |= kind in _OURS
        if isinstance(module, HasKey) and not is_known:
            raise ValueError(
                f"{path or 'the model'} is {type(module).__name__}, which torch has no equal of; replace it by hand"
            )


def _exchange(model: M, substitute: Callable[[Module], Module | None]) -> M:
    """Put each module's substitute in its place, where it has one, and return the model."""
    if (whole := substitute(model)) is not None:
        return cast(M, whole)
    replaced: dict[Module, Module] = {}  # a module that stands in two places stays one module
    for parent in list(model.modules()):
        for name, child in children(parent).items():
            if child not in replaced and (layer := substitute(child)) is not None:
                replaced[child] = layer
            parent.register_module(name, replaced.get(child, child))
    return model


def as_ours(layer: Module) -> Module | None:
    """Return the layer as one of ours, with its arguments, mode and hooks; None where we have no such layer."""
    rule = _rule(layer)
    if rule is None:
        kind = _OURS.get(type(layer))
        return None if kind is None else _with_class(kind, layer)
    if rule.refuses(layer) is not None:
        return None
    attributes = {"inplace": False, **vars(layer), **rule.attributes(layer), "key": None}
    return _with_class(rule.ours, layer, {**attributes, "_exchanged_for": layer})


def _as_theirs(layer: Module) -> Module | None:
    """Return the layer that `convert` replaced by this one, or torch's; None where the layer is not ours."""
    if hasattr(layer, "_exchanged_for"):
        original: Any = layer._exchanged_for
        rule = _rule(original)
        assert rule is not None
        attributes = {name: value for name, value in vars(layer).items() if name in vars(original)}
        theirs = _with_class(type(original), layer, attributes)
        if layer.p != rule.attributes(original)["p"]:  # the rate was changed after the conversion
            setattr(theirs, rule.rate, layer.p)
        return theirs
    kind = _TORCHS.get(type(layer))
    if kind is None:
        return None
    attributes = {name: value for name, value in vars(layer).items() if name not in ("key", "shared_dims")}
    return _with_class(kind, layer, attributes)


def _with_class(kind: type[Module], module: Module, attributes: dict[str, Any] | None = None) -> Module:
    """Return a module of another class with the module's attributes, or with the given ones."""
    layer = kind.__new__(kind)
    layer.__dict__.update(vars(module) if attributes is None else attributes)
    return layer
