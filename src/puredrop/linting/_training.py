"""Dropout that is off in training mode: never on, off after an evaluation, or a rate that nothing uses."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch.nn import Module

from puredrop.inspection import Observed, innermost, is_idle, outermost, with_holders
from puredrop.inspection.methods import names_in_methods, used_in_construction
from puredrop.inspection.reads import unread
from puredrop.inspection.watch import Event, Visit, holds_dropout, rate_of
from puredrop.linting._findings import Finding
from puredrop.linting._trace import Trace

__all__ = ["lost_findings", "training_findings", "unused_rate_findings"]

_RATE = re.compile(r"^(rate|keep_prob)$|drop(?!_last|ped)", re.IGNORECASE)


def training_findings(observed: Observed[Trace], modules: dict[str, Module]) -> list[Finding]:
    """Return the dropout that never drops in training mode, with one finding for a whole part in eval mode.

    A part that training keeps in eval mode and whose parameters are frozen is meant so.
    """
    resting = frozenset(outermost(observed.resting))
    off: dict[str, list[str]] = {}
    findings = []
    for call in observed.reached.values():
        around = innermost(_owner(call), resting)
        if around is not None and call.p:
            off.setdefault(around, []).append(call.path)
        elif is_idle(call):
            findings.append(Finding("PD202", call.path, _where(call)))
    for path, sites in off.items():
        if not _is_frozen(path, modules):
            detail = "stays in eval mode after model.train()"
            findings.append(Finding("PD202", path, detail + (f", with {len(sites)} sites" if len(sites) > 1 else "")))
    return findings


def lost_findings(observed: Observed[Trace]) -> list[Finding]:
    """Return the dropout that an evaluation has switched off for the training after it."""
    resting = frozenset(observed.resting)
    calls = [call for call in observed.lost if innermost(_owner(call), resting) is None]
    return [Finding("PD204", call.path, _where(call)) for call in calls]


def _owner(call: Visit | Event) -> str:
    """Return the path of the module that a call belongs to."""
    return call.path.rpartition(":")[0] if isinstance(call, Event) else call.path


def _where(call: Visit | Event) -> str:
    return ", ".join(filter(None, (f"p={call.p:g}" if call.p is not None else "", f"at {call.where}")))


def _is_frozen(path: str, modules: dict[str, Module]) -> bool:
    """Return whether the parameters of a module, or of the first around it that has some, are all frozen."""
    while True:
        parameters = list(modules[path].parameters())
        if parameters or not path:
            return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        path = path.rpartition(".")[0]


def unused_rate_findings(observed: Observed[Trace], modules: dict[str, Module]) -> list[Finding]:
    """Return the rates that modules hold as attributes and that no code uses."""
    candidates = list(_unused_rates(observed, modules))
    if not candidates:
        return []
    never = unread(observed.model, observed.args, observed.kwargs, [(path, name) for path, name, _ in candidates])
    return [Finding("PD205", path, f"{name}={value:g}") for path, name, value in candidates if (path, name) in never]


def _unused_rates(observed: Observed[Trace], modules: dict[str, Module]) -> Iterable[tuple[str, str, float]]:
    """Yield path, name and value of each rate that a module holds, and that neither code nor a part of it shows."""
    rates = [(site.path.rpartition(":")[0] if ":" in site.path else site.path, site.p) for site in observed.sites]
    rates += [(path, rate_of(module)) for path, module in modules.items() if holds_dropout(module)]
    known = {(around, p) for owner, p in rates for around in with_holders([owner])}
    used = with_holders(observed.entered)
    for path, module in reversed(modules.items()):  # parts before what holds them
        kind = type(module)
        if kind.__module__.startswith(("torch.", "puredrop.")) or path not in used or holds_dropout(module):
            continue
        for name, value in vars(module).items():
            if not isinstance(value, float) or not 0 < value < 1 or not _RATE.search(name):
                continue
            is_elsewhere = (path, value) in known
            known.update((around, value) for around in with_holders([path]))
            if not (is_elsewhere or name in names_in_methods(kind) or used_in_construction(kind, name)):
                yield path, name, value
