"""Exchange torch's layers for ours and back, in a whole model, without touching its parameters."""

from __future__ import annotations

import copy

import torch
from torch.nn import Module

from puredrop import nn
from puredrop.nn._keyed import Keyed

__all__ = ["convert", "revert"]

_OURS: dict[type[Module], type[Module]] = {
    torch.nn.Dropout: nn.Dropout,
    torch.nn.Dropout1d: nn.Dropout1d,
    torch.nn.Dropout2d: nn.Dropout2d,
    torch.nn.Dropout3d: nn.Dropout3d,
}
_TORCHS: dict[type[Module], type[Module]] = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: Module, inplace: bool = True) -> Module:
    """Put our layers in the place of torch's dropout layers.

    Arguments, training mode, hooks, shared modules and the state_dict stay. Only layers of exactly torch's classes are
    exchanged: a subclass may do something of its own.

    Args:
        model: any module; it may be a dropout layer itself.
        inplace: change the model itself, else a deep copy.

    Returns:
        The model (another object where the model itself is a dropout layer).

    >>> convert(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)))[1].__class__.__module__
    'puredrop.nn.element'
    """
    return _exchange(model if inplace else copy.deepcopy(model), _OURS)


def revert(model: Module, inplace: bool = True) -> Module:
    """Put torch's layers back in the place of ours; keys are given up, since torch's layers have none.

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
    return _exchange(model if inplace else copy.deepcopy(model), _TORCHS)


def _exchange(model: Module, classes: dict[type[Module], type[Module]]) -> Module:
    if type(model) in classes:
        return _as(classes[type(model)], model)
    replaced: dict[Module, Module] = {}  # one module in two places stays one
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children leaves out a second name of one module
            if child is not None and type(child) in classes:
                if child not in replaced:
                    replaced[child] = _as(classes[type(child)], child)
                parent._modules[name] = replaced[child]
    return model


def _as(kind: type[Module], module: Module) -> Module:
    """The same layer as another class: hooks, mode and arguments are its attributes."""
    new = kind.__new__(kind)
    new.__dict__.update(module.__dict__)
    if not issubclass(kind, Keyed):
        for name in ("key", "shared_dims"):
            new.__dict__.pop(name, None)
    return new
