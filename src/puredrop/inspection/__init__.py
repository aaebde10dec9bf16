"""Sites of a model: every place where one forward drops, observed and listed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.nn import Module

from puredrop._torch import COMPILED
from puredrop.inspection.duplicate import duplicate, strays_refused
from puredrop.inspection.inputs import call_arguments, check_model
from puredrop.inspection.load import load
from puredrop.inspection.site import Site, Sites
from puredrop.inspection.state import generators_restored, uncompiled
from puredrop.inspection.watch import Event, Visit, Watch, holds_dropout, kind_of, rate_of

__all__ = [
    "Observed",
    "Site",
    "Sites",
    "call_arguments",
    "load",
    "observe",
    "outermost",
    "outside_positions",
    "sites",
]

W = TypeVar("W", bound=Watch)
Calls = dict[Hashable, Visit | Event]


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
        ValueError: if the forward calls one of the model's modules by a reference that a copy of the model does not
            follow, such as a global.
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


def observe(
    kind: type[W], model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], caller: str = "sites"
) -> Observed[W]:
    """Run a model in training and in eval mode under a kind of watch; arguments and errors as `sites`."""
    check_model(model)
    model = getattr(model, COMPILED, model)  # what torch.compile wraps
    args, kwargs = call_arguments(model, args, kwargs, caller)
    notes: list[Site] = []
    watches: list[W] = []
    watched = duplicate(model)
    with generators_restored(), torch.no_grad(), uncompiled, strays_refused(model):
        for training in (True, False):
            watched.train(training)
            stuck = tuple(path for path, module in watched.named_modules() if module.training)
            before = outside_positions()
            with kind(watched) as watch:
                watch.output = watched(*args, **kwargs)
            watches.append(watch)
            if training and outside_positions() != before:
                notes.append(Site("", "unseen", None, None, "?", 1, None, "draws by Python's or NumPy's generator"))
        on, off = watches
    sites = [*_reached(on.calls, off.calls), *_never(watched, on.calls), *_scripted(watched), *notes]
    return Observed(Sites(sites), on, off, stuck)


def _reached(training: Calls, evaluated: Calls) -> list[Site]:
    """Return the sites that a forward reached, in training mode or only in eval mode."""
    sites = []
    for key, call in training.items():
        in_eval = key in evaluated and evaluated[key].drops
        sites.append(_site(call, call.path, in_eval, ""))
    for key, call in evaluated.items():
        if key not in training and call.drops:
            sites.append(replace(_site(call, f"{call.path} (eval)", True, "in eval mode only"), uses=0))
    return sites


def _site(call: Visit | Event, path: str, in_eval: bool, note: str) -> Site:
    if isinstance(call, Visit):
        kind, p = kind_of(call.module), rate_of(call.module)
    else:
        kind, p, note = call.kind, call.p, note or call.note
    return Site(path, kind, p, call.shape, call.where, call.uses, in_eval, note)


def _never(model: Module, reached: Calls) -> list[Site]:
    """Return the modules that hold a dropout and were not called; a function may use their rate instead."""
    sites = []
    users: dict[tuple[str, float | None], str] = {}
    for call in reached.values():
        if isinstance(call, Event):
            users.setdefault((call.path.rpartition(":")[0], call.p), call.path)
    for path, module in model.named_modules():
        if not holds_dropout(module) or path in reached:
            continue
        user = users.get((path.rpartition(".")[0], rate_of(module)))
        note = "never called" if user is None else f"never called, but {user} has its rate"
        sites.append(Site(path, kind_of(module), rate_of(module), None, type(module).__name__, 0, None, note))
    return sites


def _scripted(model: Module) -> list[Site]:
    paths = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    note = "TorchScript cannot be inspected"
    return [Site(path, "unseen", None, None, "TorchScript", 0, None, note) for path in outermost(paths)]


def outermost(paths: Sequence[str]) -> list[str]:
    """Return the paths of modules that lie within none of the other modules."""
    known = set(paths)
    return [path for path in paths if known.isdisjoint(_around(path))]


def _around(path: str) -> Iterator[str]:
    """Yield the paths of the modules that a module lies within."""
    if path:
        yield ""
    yield from (path[:i] for i, letter in enumerate(path) if letter == ".")


def outside_positions() -> tuple[Any, ...]:
    """Return the positions of Python's and NumPy's generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest
