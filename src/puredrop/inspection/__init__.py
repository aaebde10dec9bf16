"""Sites of a model: every place where one forward drops, observed and listed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.nn import Module

from puredrop._torch import COMPILED
from puredrop.inspection.inputs import call_arguments
from puredrop.inspection.load import load
from puredrop.inspection.site import Site, Sites
from puredrop.inspection.state import restored
from puredrop.inspection.watch import Event, Visit, Watch, holds_dropout, kind_of, rate_of

__all__ = ["call_arguments", "Observed", "Site", "Sites", "load", "observe", "outermost", "sites"]

W = TypeVar("W", bound=Watch)
Found = dict[Hashable, Visit | Event]


def sites(model: Module, *args: Any, **kwargs: Any) -> Sites:
    """List every place where a model drops, by running it once in training mode and once in eval mode.

    Use it before you rely on dropout: to see which rates are in effect, which dropout modules the forward never calls,
    and what still drops in eval mode. The list holds dropout modules, functional dropout, attention dropout, dropout
    between recurrent layers, and every other call that advances one of torch's generators, such as a handwritten
    stochastic depth; then the modules that hold a dropout which the forward never calls, and what cannot be inspected.
    The model's modes and buffers and all generators are restored; no gradient is computed; compiled parts run
    uncompiled.

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
        Exception: whatever the forward raises, unchanged.

    >>> sites(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)), torch.ones(1, 2))
    path  kind     p    shape  uses  in eval  where
    1     dropout  0.3  1x2    1     off      torch.nn.Dropout
    """
    return observe(Watch, model, args, kwargs).sites


@dataclass(frozen=True)
class Observed(Generic[W]):
    """Record of two forwards, one in training mode and one in eval mode.

    Args:
        sites: the observed sites.
        training, evaluated: the watches, in training mode and in eval mode.
        stuck: paths of modules that `model.eval()` leaves in training mode.
    """

    sites: Sites
    training: W
    evaluated: W
    stuck: tuple[str, ...]


def observe(kind: type[W], model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observed[W]:
    """Run a model in training and in eval mode under a kind of watch; arguments and errors as `sites`."""
    if not isinstance(model, Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    model = getattr(model, COMPILED, model)  # what torch.compile wraps
    args, kwargs = call_arguments(model, args, kwargs)
    notes: list[Site] = []
    watches: list[W] = []
    with restored(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for training in (True, False):
            model.train(training)
            stuck = tuple(path for path, module in model.named_modules() if module.training)
            before = _outside()
            with kind(model) as watch:
                watch.output = model(*args, **kwargs)
            watches.append(watch)
            if training and _outside() != before:
                notes.append(Site("", "unseen", None, None, "?", 1, None, "draws by Python's or NumPy's generator"))
    on, off = watches
    found = [*_reached(on.found, off.found), *_never(model, on.found), *_scripted(model), *notes]
    return Observed(Sites(found), on, off, stuck)


def _reached(training: Found, evaluated: Found) -> list[Site]:
    found = []
    for key, one in training.items():
        in_eval = key in evaluated and evaluated[key].drops
        found.append(_site(one, one.path, in_eval, ""))
    only = [one for key, one in evaluated.items() if key not in training and one.drops]
    return [*found, *(replace(_site(one, f"{one.path} (eval)", True, "in eval mode only"), uses=0) for one in only)]


def _site(one: Visit | Event, path: str, in_eval: bool, note: str) -> Site:
    if isinstance(one, Visit):
        kind, p = kind_of(one.module), rate_of(one.module)
    else:
        kind, p, note = one.kind, one.p, note or one.note
    return Site(path, kind, p, one.shape, one.where, one.uses, in_eval, note)


def _never(model: Module, reached: Found) -> list[Site]:
    """Return the modules that hold a dropout and were not called; some give their rate to a function next to them."""
    found = []
    for path, module in model.named_modules():
        if not holds_dropout(module) or path in reached:
            continue
        beside = f"{path.rpartition('.')[0]}:"
        seen = reached.values()
        users = [one.path for one in seen if one.path.startswith(beside) and _rate(one) == rate_of(module)]
        note = f"never called, but {users[0]} has its rate" if users else "never called"
        found.append(Site(path, kind_of(module), rate_of(module), None, type(module).__name__, 0, None, note))
    return found


def _rate(one: Visit | Event) -> float | None:
    return rate_of(one.module) if isinstance(one, Visit) else one.p


def _scripted(model: Module) -> list[Site]:
    paths = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    note = "TorchScript cannot be looked into"
    return [Site(path, "unseen", None, None, "TorchScript", 0, None, note) for path in outermost(paths)]


def outermost(paths: Sequence[str]) -> list[str]:
    """Return the paths of modules that lie within none of the other modules."""
    return [one for one in paths if not any(one != other and _is_within(one, other) for other in paths)]


def _is_within(path: str, other: str) -> bool:
    return not other or path.startswith(f"{other}.")


def _outside() -> tuple[Any, ...]:
    """Return the positions of Python's and NumPy's generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest
