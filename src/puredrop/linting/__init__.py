"""Check of models and source files for mistakes with dropout, each with a code, a reason and a fix."""

from __future__ import annotations

import itertools
from collections.abc import Set
from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from puredrop.inspection import MORE, Observed, Site, observe, outermost
from puredrop.linting._answer import answer
from puredrop.linting._codes import CODES, Code
from puredrop.linting._findings import Finding, Report
from puredrop.linting._trace import Trace
from puredrop.linting._training import lost_findings, training_findings, unused_rate_findings
from puredrop.nn.keyed import HasKey

__all__ = ["CODES", "Code", "Finding", "Report", "check"]


def check(model: Module, *args: Any, **kwargs: Any) -> Report:
    """Find the mistakes that a model makes with dropout, by running it in training mode and in eval mode.

    Use it before a long training, or in a test of the model: it finds dropout that eval mode does not switch off, or
    that training mode does not switch on, layers and rates that nothing uses, results that are thrown away, rates that
    are probably wrong, and dropout in harmful places. docs/check.md explains each code. `puredrop check` does the same
    on the command line, and reads source files too.

    Args:
        model: any module; modes, buffers, rates and generators are restored afterwards.
        args, kwargs: inputs of the model, in any form that `puredrop.sites` takes.

    Returns:
        The report; `report.ok` is True if there are no findings, and False for a model without any dropout.

    Raises:
        TypeError: if the model is not a module, or its inputs are missing.
        Exception: any error of the model's forward, unchanged.

    >>> import torch
    >>> print(check(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.95), nn.Linear(2, 2)), torch.ones(1, 2)))
    1: warning PD303: the rate is 0.9 or more: p=0.95
    <BLANKLINE>
    PD303: the rate is 0.9 or more
        why: hardly anything is left to learn from; often the share to keep was
             meant
        fix: p is the share that is dropped: keep_prob 0.9 is p=0.1
    <BLANKLINE>
    1 finding (1 site checked)
    """
    observed = observe(Trace, model, args, kwargs, "check", more=MORE, repeats=True)
    modules, stuck = dict(observed.model.named_modules()), frozenset(observed.stuck)
    places = {site.path: f"at {site.where}" for site in observed.sites}
    findings = [
        *itertools.chain(*(_site_findings(site, modules, stuck) for site in observed.sites)),
        *(Finding("PD104", path) for path in outermost(observed.stuck)),
        *training_findings(observed, modules),
        *(Finding("PD203", path, places.get(path, "")) for path in observed.training.thrown_away()),
        *lost_findings(observed),
        *unused_rate_findings(observed, modules),
        *_rate_findings(observed.sites),
        *_norm_findings(observed),
        *_output_findings(observed),
        *(Finding("PD404", path, f"of shape {shape}") for path, shape in observed.training.maps.items()),
        *(Finding("PD501", path) for path, module in modules.items() if _drops_between_nothing(module)),
    ]
    return Report(tuple(findings), len(observed.sites))


def _site_findings(site: Site, modules: dict[str, Module], stuck: Set[str]) -> list[Finding]:
    """Return the mistakes that one site shows by itself."""
    findings, module = [], modules.get(site.path)
    where = f"p={site.p:g}" if site.p is not None else ""
    # PD104 covers modules that stay in training mode, and the calls in them.
    if site.in_eval and stuck.isdisjoint((site.path, site.path.rpartition(":")[0])):
        code = {"attention": "PD102", "draw": "PD103", "unseen": "PD103"}.get(site.kind, "PD101")
        place = site.note if site.where == "TorchScript" else f"at {site.where}"
        findings.append(Finding(code, site.path, ", ".join(filter(None, (where, place)))))
    if not site.is_reached and site.note == "never called" and site.p != 0:
        findings.append(Finding("PD201", site.path, where))
    if site.p == 1:
        findings.append(Finding("PD302", site.path))
    elif site.p is not None and site.p >= 0.9:
        findings.append(Finding("PD303", site.path, where))
    if isinstance(module, HasKey) and module.key is not None and site.uses > 1:
        findings.append(Finding("PD405", site.path, f"{module.key}, {site.uses} times"))
    return findings


def _rate_findings(sites: list[Site]) -> list[Finding]:
    """Return a finding if every rate is 0."""
    rates = [site.p for site in sites]
    return [Finding("PD301", "", f"{len(rates)} sites")] if rates and all(rate == 0 for rate in rates) else []


def _norm_findings(observed: Observed[Trace]) -> list[Finding]:
    """Return the places where dropout shifts the variance that BatchNorm learns."""
    rates = {site.path: site.p for site in observed.sites}
    findings = []
    for path, training in observed.training.norms.items():
        p = rates.get(training.site or "")
        evaluated = observed.evaluated.norms.get(path)
        if training.site is None or evaluated is None or not p or p == 1:
            continue
        measured = (evaluated.variance / training.variance).nanmedian()
        detail = f"variance at inference {measured:.2f} times that in training"
        if training.layers == 0:
            predicted = _shift(evaluated.mean, evaluated.variance, p).nanmedian()
            detail += f", {predicted:.2f} predicted"
        findings.append(Finding("PD401", training.site, f"p={p:g}, before {path}, {detail}"))
    return findings


def _shift(mean: Tensor, variance: Tensor, p: float) -> Tensor:
    """Return the variance without dropout over that directly after dropout (Li et al. 2019)."""
    return variance / ((mean**2 + variance) / (1 - p) - mean**2)


def _output_findings(observed: Observed[Trace]) -> list[Finding]:
    """Return findings of dropout after the last layer, or before a single regression output."""
    rates = {site.path: site.p for site in observed.sites}
    origin = observed.training.origin_of_answer()
    if not origin.site or not rates.get(origin.site):
        return []
    output = answer(observed.training.output)
    is_single = output is not None and output.is_floating_point() and output.shape[-1:] == (1,)
    if origin.layers == 1 and is_single:
        return [Finding("PD403", origin.site)]
    return [Finding("PD402", origin.site)] if origin.layers == 0 else []


def _drops_between_nothing(module: Module) -> bool:
    """Return whether a recurrent layer has a rate and no boundary between layers to drop at."""
    return isinstance(module, nn.RNNBase) and module.num_layers == 1 and module.dropout > 0
