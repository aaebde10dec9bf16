"""List of sites from what forwards in training mode and in eval mode called."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import replace

import torch
from torch import nn
from torch.nn import Module

from puredrop._torch import DropoutNd
from puredrop.inspection.methods import names_in_methods
from puredrop.inspection.scripted import random_operators
from puredrop.inspection.site import Site
from puredrop.inspection.watch import Event, Visit, holds_dropout, kind_of, rate_of

__all__ = ["Calls", "all_reached", "innermost", "is_idle", "listed_sites", "outermost", "with_holders"]

Calls = dict[Hashable, Visit | Event]


def listed_sites(model: Module, training: Calls, evaluated: Calls, entered: Set[str], forwards: int) -> list[Site]:
    """Return the sites of a model: those reached, those not reached, and what cannot be inspected.

    Args:
        model: the model, or its duplicate.
        training, evaluated: the calls in training mode and in eval mode.
        entered: paths of the modules that ran in any forward.
        forwards: number of forwards that were run.
    """
    scripted = _scripted(model, training, evaluated)
    hidden = tuple(f"{site.path}:unseen" for site in scripted)
    training, evaluated = _without(training, hidden), _without(evaluated, hidden)
    return [*_reached(training, evaluated), *_never(model, training, evaluated, entered, forwards), *scripted]


def _without(calls: Calls, prefixes: tuple[str, ...]) -> Calls:
    return {key: call for key, call in calls.items() if not call.path.startswith(prefixes)} if prefixes else calls


def is_idle(call: Visit | Event) -> bool:
    """Return whether a call in training mode had a rate and certainly dropped nothing.

    A layer of the user's that neither calls dropout nor draws may have its reasons, such as a warm-up.
    """
    if call.drops or not call.p:
        return False
    if isinstance(call, Event):
        return call.kind != "recurrent"
    module = call.module
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:  # there is no boundary to drop at, in any mode
        return False
    return call.is_off or isinstance(module, DropoutNd)


def _reached(training: Calls, evaluated: Calls) -> list[Site]:
    """Return the sites that a forward reached, in training mode or only in eval mode."""
    sites = []
    for key, call in training.items():
        in_eval = key in evaluated and evaluated[key].drops
        sites.append(_site(call, call.path, in_eval, _idle_note(call)))
    for key, call in evaluated.items():
        if key not in training and call.drops:
            sites.append(replace(_site(call, f"{call.path} (eval)", True, "in eval mode only"), uses=0))
    return sites


def _idle_note(call: Visit | Event) -> str:
    if not is_idle(call):
        return ""
    is_off = isinstance(call, Visit) and not call.module.training
    return "does not drop in training mode" + (", stays in eval mode" if is_off else "")


def _site(call: Visit | Event, path: str, in_eval: bool, note: str) -> Site:
    kind = call.kind if isinstance(call, Event) else kind_of(call.module)
    if isinstance(call, Event):
        note = note or call.note
    return Site(path, kind, call.p, call.shape, call.where, call.uses, in_eval, note)


def _never(model: Module, training: Calls, evaluated: Calls, entered: Set[str], forwards: int) -> list[Site]:
    """Return the modules that hold a dropout and were not called; a function may use their rate instead."""
    sites = []
    modules = dict(model.named_modules())
    users, used = _rate_users(training), with_holders(entered)
    for path, module in modules.items():
        if not holds_dropout(module) or path in training:
            continue
        user = users.get(_rate_of_call(path, module))
        if user is not None:
            note = f"never called, but {user} has its rate"
        elif path in evaluated:
            note = "reached in eval mode only"
        elif _is_container(module):
            note = "has no forward to call"
        elif _may_be_called(path, modules, entered, used):
            note = f"not reached in {forwards} forwards"
        else:
            note = "never called"
        sites.append(Site(path, kind_of(module), rate_of(module), None, type(module).__name__, 0, None, note))
    return sites


def all_reached(model: Module, training: Calls) -> bool:
    """Return whether each dropout module of a model was called, or a function used its rate."""
    users = _rate_users(training)
    holders = ((path, one) for path, one in model.named_modules() if holds_dropout(one) and not _is_container(one))
    return all(path in training or _rate_of_call(path, module) in users for path, module in holders)


def _rate_users(calls: Calls) -> dict[tuple[str, float | None], str]:
    """Return the functional calls by the path of their module and their rate."""
    users: dict[tuple[str, float | None], str] = {}
    for call in calls.values():
        if isinstance(call, Event):
            users.setdefault((call.path.rpartition(":")[0], call.p), call.path)
    return users


def _rate_of_call(path: str, module: Module) -> tuple[str, float | None]:
    """Return the path and rate of a functional call that uses a module's rate: in the module that holds it."""
    return path.rpartition(".")[0], rate_of(module)


def with_holders(paths: Iterable[str]) -> frozenset[str]:
    """Return paths of modules with those of the modules around them."""
    return frozenset(around for path in paths for around in (path, *_around(path)))


def innermost(path: str, chosen: Set[str]) -> str | None:
    """Return the innermost of the chosen modules that a module lies within or is; None if there is none."""
    return next((around for around in (path, *reversed(list(_around(path)))) if around in chosen), None)


def _may_be_called(path: str, modules: dict[str, Module], entered: Set[str], used: Set[str]) -> bool:
    """Return whether a module that was not called may be called in another forward.

    So it is if the forward of the module that holds it did not run, or if that one's code names it: other inputs or
    other draws may lead there.
    """
    if not path:
        return False
    holder = next((around for around in reversed(list(_around(path))) if not _is_container(modules[around])), "")
    if holder not in entered:
        return True
    within = path.removeprefix(f"{holder}.") if holder else path
    name, _, inner = within.partition(".")
    if inner:
        siblings = path.rpartition(".")[0]
        if siblings in used:
            return isinstance(modules[siblings], nn.ModuleDict)
    return name in names_in_methods(type(modules[holder]))


def _is_container(module: Module) -> bool:
    """Return whether a module has no forward, such as a ModuleList."""
    return type(module).forward is Module.forward


def _scripted(model: Module, training: Calls, evaluated: Calls) -> list[Site]:
    """Return the outermost TorchScript modules, whose forwards cannot be watched."""
    sites = []
    modules = {path: one for path, one in model.named_modules() if isinstance(one, torch.jit.ScriptModule)}
    for path in outermost(list(modules)):
        hidden = f"{path}:unseen"
        drew = len(_without(training, (hidden,))) < len(training)
        in_eval = len(_without(evaluated, (hidden,))) < len(evaluated)
        operators = random_operators(modules[path])
        note = "TorchScript cannot be inspected" + (f"; its graph has {', '.join(operators)}" if operators else "")
        sites.append(Site(path, "unseen", None, None, "TorchScript", 1, in_eval if drew or in_eval else None, note))
    return sites


def outermost(paths: Sequence[str]) -> list[str]:
    """Return the paths of modules that lie within none of the other modules."""
    known = set(paths)
    return [path for path in paths if known.isdisjoint(_around(path))]


def _around(path: str) -> Iterator[str]:
    """Yield the paths of the modules that a module lies within, outermost first."""
    if path:
        yield ""
    yield from (path[:i] for i, letter in enumerate(path) if letter == ".")
