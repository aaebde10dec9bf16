"""Sites of a model: every place where one forward drops, observed and listed."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

from puredrop.inspection.inputs import call_arguments
from puredrop.inspection.listing import Calls, innermost, is_idle, outermost, with_holders
from puredrop.inspection.load import load
from puredrop.inspection.observation import Observed, observe
from puredrop.inspection.outside import outside_positions
from puredrop.inspection.site import Site, Sites
from puredrop.inspection.watch import Watch

__all__ = [
    "MORE",
    "Calls",
    "Observed",
    "Site",
    "Sites",
    "call_arguments",
    "innermost",
    "is_idle",
    "load",
    "observe",
    "outermost",
    "outside_positions",
    "sites",
    "with_holders",
]

MORE = 5
"""The most forwards under other draws."""


def sites(model: Module, *args: Any, **kwargs: Any) -> Sites:
    """List every place where a model drops, by running it in training mode and in eval mode.

    Use it before you rely on dropout: to see which rates are in effect, which dropout modules the forward never calls,
    and what still drops in eval mode. The list holds dropout modules, functional dropout, attention dropout, dropout
    between recurrent layers, and every other call that advances a generator of torch, Python or NumPy, such as a
    handwritten stochastic depth; then the modules that hold a dropout which no forward called, and what cannot be
    inspected. Where draws decide which modules run, the model runs again under other draws, five times at most.
    The model's modes, buffers and rates and all generators are restored; no gradient is computed; compiled parts run
    uncompiled. Seeds are fixed, so the list is the same each time.

    Args:
        model: any module.
        args: the inputs of the model's forward; or one object that holds them all: a tuple, a mapping (a dict, a
            Hugging Face BatchEncoding), a batch `[x, y]` whose targets the forward does not take, or a DataLoader,
            whose first batch is used.
        kwargs: inputs of the forward by name.

    Returns:
        The sites in the order of the forward, then those never reached; prints as a table, and has `to_dict`, `to_json`
        and `frame`.

    Raises:
        TypeError: if the model is not a module, or there are no inputs and its forward needs some.
        ValueError: if the forward calls one of the model's modules by a reference that a copy of the model does not
            follow, such as a global.
        Exception: whatever the forward raises, unchanged.

    >>> import torch
    >>> sites(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)), torch.ones(1, 2))
    path  kind     p    shape  uses  in eval  where
    1     dropout  0.3  1x2    1     off      torch.nn.Dropout
    """
    return observe(Watch, model, args, kwargs, more=MORE).sites
