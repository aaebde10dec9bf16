"""Mistakes with dropout, found in a model or in source files, each with a code, a reason and a fix."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from puredrop.inspection import Observed, Site, observe, outermost
from puredrop.linting._findings import CODES, Code, Finding, Report
from puredrop.linting._trace import Trace
from puredrop.nn.keyed import HasKey

__all__ = ["CODES", "Code", "Finding", "Report", "check"]


def check(model: Module, *args: Any, **kwargs: Any) -> Report:
    """Run a model once in training and once in eval mode, and name the mistakes its dropout makes.

    Args:
        model: any module; modes, buffers and generators are as before when it returns.
        args, kwargs: what it is called with, as in `sites`.

    Returns:
        The findings; `report.ok` says whether there are none. docs/check.md has a section for each code.

    Raises:
        TypeError: if the model is no module.
        Whatever the forward raises, untouched.

    >>> import torch
    >>> print(check(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.95), nn.Linear(2, 2)), torch.ones(1, 2)))
    1: warning PD303: the rate is 0.9 or more: p=0.95
        why: hardly anything is left to learn from; often the share to keep was meant
        fix: p is the share that is dropped: keep_prob 0.9 is p=0.1
    1 finding
    """
    seen = observe(Trace, model, args, kwargs)
    modules = dict(model.named_modules())
    findings = [
        *(one for site in seen.sites for one in _of_site(site, modules.get(site.path), site.path in seen.stuck)),
        *(Finding("PD104", path) for path in outermost(seen.stuck)),
        *_of_rates(seen.sites),
        *_of_norms(seen),
        *_of_outputs(seen),
        *(Finding("PD404", path, f"of shape {shape}") for path, shape in seen.training.maps.items()),
        *(Finding("PD501", path) for path, module in modules.items() if _drops_between_nothing(module)),
    ]
    return Report(tuple(findings), len(seen.sites))


def _of_site(site: Site, module: Module | None, is_stuck: bool) -> list[Finding]:
    found = []
    where = f"p={site.p:g}" if site.p is not None else ""
    if site.in_eval and not is_stuck:  # which is a finding of its own
        code = {"attention": "PD102", "draw": "PD103", "unseen": "PD103"}.get(site.kind, "PD101")
        found.append(Finding(code, site.path, ", ".join(filter(None, (where, f"at {site.where}")))))
    if not site.is_reached and site.note == "never called" and site.p != 0:
        found.append(Finding("PD201", site.path, where))
    if site.p == 1:
        found.append(Finding("PD302", site.path))
    elif site.p is not None and site.p >= 0.9:
        found.append(Finding("PD303", site.path, where))
    if isinstance(module, HasKey) and module.key is not None and site.uses > 1:
        found.append(Finding("PD405", site.path, f"{module.key}, {site.uses} times"))
    return found


def _of_rates(sites: list[Site]) -> list[Finding]:
    rates = [site.p for site in sites]
    return [Finding("PD301", "", f"{len(rates)} sites")] if rates and all(rate == 0 for rate in rates) else []


def _of_norms(seen: Observed[Trace]) -> list[Finding]:
    rates = {site.path: site.p for site in seen.sites}
    found = []
    for path, training in seen.training.norms.items():
        p = rates.get(training.site or "")
        evaluated = seen.evaluated.norms.get(path)
        if training.site is None or evaluated is None or not p or p == 1:
            continue
        measured = (evaluated.variance / training.variance).nanmedian()
        detail = f"variance at inference {measured:.2f} times that in training"
        if training.layers == 0:
            predicted = _shift(evaluated.mean, evaluated.variance, p).nanmedian()
            detail += f", {predicted:.2f} predicted"
        found.append(Finding("PD401", training.site, f"p={p:g}, before {path}, {detail}"))
    return found


def _shift(mean: Tensor, variance: Tensor, p: float) -> Tensor:
    """Variance without dropout over that with it, directly behind (Li et al. 2019)."""
    return variance / ((mean**2 + variance) / (1 - p) - mean**2)


def _of_outputs(seen: Observed[Trace]) -> list[Finding]:
    rates = {site.path: site.p for site in seen.sites}
    origins = seen.training.origin_of_output()
    last = [Finding("PD402", one.site) for one in origins if one.site and one.layers == 0 and rates.get(one.site)]
    output = seen.training.output
    is_single = isinstance(output, Tensor) and output.is_floating_point() and output.shape[-1:] == (1,)
    before = [one.site for one in origins if is_single and one.site and one.layers == 1 and rates.get(one.site)]
    return [*last, *(Finding("PD403", site) for site in before)]


def _drops_between_nothing(module: Module) -> bool:
    return isinstance(module, nn.RNNBase) and module.num_layers == 1 and module.dropout > 0
