"""Watch of a training loop: dropout on in every training step, off in every evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Module

from puredrop.training_watch._report import WatchFinding, WatchReport, WatchWarning
from puredrop.training_watch._sites import Names
from puredrop.training_watch._watch import TrainingWatch

__all__ = ["Names", "TrainingWatch", "WatchFinding", "WatchReport", "WatchWarning", "watch"]


def watch(
    model: Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    *,
    allow: Names = (),
    exclude: Names = (),
    strict: bool = False,
) -> TrainingWatch:
    """Watch a training loop: dropout must be on in every training step and off in every evaluation.

    Use it in every training whose loop calls other people's code: an evaluation, a callback or a generation that
    leaves the model in the wrong mode changes the results and raises no error. One hook on the model reads the flags
    and rates of its dropout sites before each forward; no result changes, and nothing is added to compiled programs.
    Each kind of mistake is reported once, as a `WatchWarning` with code, place, step and rank, and stands in
    `watch.report`. docs/watch.md says what counts as a training step and as an evaluation.

    Args:
        model: the model that is called in the loop; wrappers of DDP, FSDP and torch.compile may be around it, now or
            later.
        optimizer: the optimizer that trains the model, or several; the first counts the steps. If None, each optimizer
            that holds a parameter of the model is found when it steps.
        allow: paths or classes of modules that drop in evaluations on purpose (MC dropout).
        exclude: paths or classes of modules that are not watched at all.
        strict: whether a mistake raises RuntimeError instead of a warning: one in a training step before the optimizer
            changes a weight, one in an evaluation before the forward.

    Returns:
        The watch: a context manager with `report`, `step`, `phase`, `allowed()` and `stop()`.

    Raises:
        TypeError: if the model is not a module, the optimizer is none, or allow or exclude hold something else.
        ValueError: if allow or exclude name a path that the model lacks; if strict, and the model has no dropout.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    >>> with watch(model) as watched, torch.inference_mode():
    ...     _ = model.eval()(torch.ones(2, 4))
    >>> watched.report
    no findings (1 site, 0 steps, 0 training forwards, 1 evaluation forward)
    """
    return TrainingWatch(model, optimizer, allow=allow, exclude=exclude, strict=strict)
