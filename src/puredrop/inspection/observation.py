"""Observation of a model: forwards of its duplicate in training mode and in eval mode, under a watch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import distributed
from torch.nn import Module

from puredrop._torch import COMPILED
from puredrop.inspection.duplicate import duplicate, strays_refused
from puredrop.inspection.inputs import call_arguments, check_model
from puredrop.inspection.listing import Calls, all_reached, listed_sites
from puredrop.inspection.outside import DrawTracer, Generators
from puredrop.inspection.scalars import SavedScalars
from puredrop.inspection.site import Sites
from puredrop.inspection.state import generators_restored, uncompiled
from puredrop.inspection.watch import Event, Visit, Watch

__all__ = ["Observed", "observe", "undisturbed"]

W = TypeVar("W", bound=Watch)
_LIBRARIES = {"python": "Python's random", "numpy": "NumPy's generator"}


@dataclass(frozen=True)
class Observed(Generic[W]):
    """Record of forwards in training mode and in eval mode.

    Args:
        model: the model, without the wrapper of torch.compile.
        sites: the observed sites.
        training, evaluated: the watches of the first forward in training mode, and of that in eval mode.
        stuck: paths of modules that `model.eval()` leaves in training mode.
        reached: the calls of all forwards in training mode before the evaluation.
        entered: paths of the modules that ran in training mode.
        resting: paths of modules that `model.train()` leaves in eval mode, at first or after an evaluation.
        lost: calls that dropped before an evaluation, and after it no longer; empty unless asked for.
        args, kwargs: the arguments of the forwards.
    """

    model: Module
    sites: Sites
    training: W
    evaluated: W
    stuck: tuple[str, ...]
    reached: Calls
    entered: frozenset[str]
    resting: tuple[str, ...]
    lost: tuple[Visit | Event, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def observe(
    kind: type[W],
    model: Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    caller: str = "sites",
    *,
    more: int = 0,
    repeats: bool = False,
) -> Observed[W]:
    """Run a model in training and in eval mode under a kind of watch; arguments and errors as `sites`.

    The forwards start from fixed seeds, so that the same model is observed alike each time.

    Args:
        kind: class of the watch of the first forward in each mode.
        model, args, kwargs, caller: as of `sites`.
        more: the most forwards under other draws, which run only if the first has not reached every dropout module.
        repeats: whether to train once more after the evaluation.
    """
    check_model(model)
    model = getattr(model, COMPILED, model)  # what torch.compile wraps
    args, kwargs = call_arguments(model, args, kwargs, caller)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        more, repeats = 0, False  # ranks that run different numbers of forwards wait for each other
    with undisturbed(model) as (scalars, generators):
        return _Observation(model, args, kwargs, scalars, generators).observed(kind, more, repeats)


@contextmanager
def undisturbed(model: Module) -> Iterator[tuple[SavedScalars, Generators]]:
    """Run duplicates of a model without a trace in the model, its objects or any generator; no gradient is computed.

    Yields what is restored at the end, so that it may be restored in between, too.
    """
    with generators_restored(), torch.no_grad(), uncompiled:
        scalars, generators = SavedScalars(model), Generators(model)
        try:
            yield scalars, generators
        finally:
            scalars.restore()
            generators.restore()


class _Observation:
    """Forwards of one model on one input.

    Args:
        model: the model, which is never run itself.
        args, kwargs: the arguments of its forward.
        scalars, generators: the model's own, as they were before.
    """

    def __init__(
        self,
        model: Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scalars: SavedScalars,
        generators: Generators,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._scalars, self._generators = scalars, generators

    def observed(self, kind: type[W], more: int, repeats: bool) -> Observed[W]:
        """Run the forwards; arguments as of `observe`."""
        watched = duplicate(self._model)
        watched.train()
        resting = [path for path, module in watched.named_modules() if not module.training]
        training = self._forward(kind, watched, 0)
        watched.eval()
        stuck = tuple(path for path, module in watched.named_modules() if module.training)
        evaluated = self._forward(kind, watched, 0)
        lost: list[Visit | Event] = []
        if repeats:
            watched.train()
            resting += [path for path, one in watched.named_modules() if not one.training and path not in resting]
            lost = self._lost(training.calls, self._forward(Watch, watched, 0).calls)
        reached, entered = dict(training.calls), set(training.entered)
        forwards = 2 + self._reach_more(reached, entered, more)
        sites = Sites(listed_sites(watched, reached, evaluated.calls, entered | evaluated.entered, forwards))
        return Observed(
            self._model,
            sites,
            training,
            evaluated,
            stuck,
            reached,
            frozenset(entered),
            tuple(resting),
            tuple(lost),
            self._args,
            self._kwargs,
        )

    def _forward(self, kind: type[W], watched: Module, seed: int) -> W:
        """Run one forward under a watch, and locate its draws from Python's and NumPy's generators."""
        self._generators.start(seed)
        positions = self._generators.positions()
        with strays_refused(self._model), kind(watched) as watch:
            watch.output = watched(*self._args, **self._kwargs)
        advanced = self._generators.advanced(positions)
        if advanced:
            self._locate(watch, watched.training, advanced, seed)
        return watch

    def _locate(self, watch: Watch, training: bool, advanced: list[Any], seed: int) -> None:
        """Add the draws of a forward to its watch, by a traced forward of another duplicate."""
        traced = duplicate(self._model)
        traced.train(training)
        self._generators.start(seed)
        with (
            strays_refused(self._model),
            Watch(traced) as again,
            DrawTracer(advanced, lambda: again.path) as tracer,
        ):
            traced(*self._args, **self._kwargs)
        if not tracer.draws:
            note = "draws by Python's or NumPy's generator"
            watch.calls["", "outside"] = Event(":unseen", "unseen", None, None, "?", True, 1, note)
        numbers: dict[tuple[str, str], int] = {}
        for draw, times in tracer.draws.items():
            visit = watch.calls.get(draw.path)
            if isinstance(visit, Visit):
                visit.drops = True
                continue
            number = numbers[draw.path, draw.library] = numbers.get((draw.path, draw.library), -1) + 1
            path, note = f"{draw.path}:{draw.library}{number}", f"draws by {_LIBRARIES[draw.library]}"
            watch.calls[draw] = Event(path, "draw", None, None, draw.where, True, times, note)

    def _lost(self, before: Calls, after: Calls) -> list[Visit | Event]:
        """Return the calls that dropped before an evaluation and not after it, although the draws are the same.

        Two forwards in a row without an evaluation tell whether the first forward has done it.
        """
        lost = [key for key, call in before.items() if call.drops and not _drops(after, key)]
        if not lost:
            return []
        self._scalars.restore()
        control = duplicate(self._model)
        control.train()
        self._forward(Watch, control, 0)
        calls = self._forward(Watch, control, 0).calls
        self._scalars.restore()
        return [before[key] for key in lost if _drops(calls, key)]

    def _reach_more(self, reached: Calls, entered: set[str], more: int) -> int:
        """Run forwards under other draws until every dropout module is reached, and return their number.

        Where another draw leads to the same modules, draws do not decide which modules run, and one is enough.
        """
        for seed in range(1, more + 1):
            if all_reached(self._model, reached):
                return seed - 1
            self._scalars.restore()
            watched = duplicate(self._model)
            watched.train()
            watch = self._forward(Watch, watched, seed)
            for key, call in watch.calls.items():
                known = reached.setdefault(key, call)
                known.drops |= call.drops
            if watch.entered <= entered and entered <= watch.entered:
                return seed
            entered |= watch.entered
        return more


def _drops(calls: Calls, key: Any) -> bool:
    return key in calls and calls[key].drops
