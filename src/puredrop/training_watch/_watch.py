"""Watch of one model: what each forward and each optimizer step mean, and the mistakes among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn import Module

from puredrop.inspection.inputs import check_model
from puredrop.training_watch._hook import ForwardHook, tell_compilers
from puredrop.training_watch._report import WatchFinding, WatchReport, WatchWarning
from puredrop.training_watch._sites import Names, WatchedSites, unwrapped
from puredrop.training_watch._steps import StepHooks, optimizers_in

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TrainingWatch"]

_PHASES = ("training", "evaluation", None)
_NONE: frozenset[int] = frozenset()


class TrainingWatch:
    """Watch of a model's dropout while a loop trains and evaluates it; `puredrop.watch` makes it.

    Args:
        model: the model, in wrappers or not.
        optimizer: the optimizer or optimizers; None to find them, an empty list if `before_step` and `after_step` are
            called by hand.
        allow: paths or classes of modules that may drop in evaluations.
        exclude: paths or classes of modules that are not watched.
        strict: whether a mistake raises.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).eval()  # and no train()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> watched = TrainingWatch(model, optimizer, strict=True)
    >>> model(torch.ones(2, 4)).sum().backward()
    >>> optimizer.step()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    RuntimeError: (model): error PD601: dropout is off in a training step: step 0, 1 site, training=False...
    >>> watched.stop()
    """

    def __init__(
        self,
        model: Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        allow: Names = (),
        exclude: Names = (),
        strict: bool = False,
    ) -> None:
        check_model(model)
        optimizers = optimizers_in(optimizer)
        self._root = unwrapped(model)
        self._names = (_listed("allow", allow), _listed("exclude", exclude))
        self._strict = strict
        self._phase: str | None = None
        self._allowing = 0
        self._findings: dict[str, WatchFinding] = {}
        self._step = self._training_forwards = self._evaluation_forwards = 0
        self._once_on: dict[str, float] = {}
        self._changing: set[str] = set()
        self._lost: set[str] = set()  # sites whose rate an evaluation set to 0
        self._off: frozenset[int] | None = None  # sites that were off in all training forwards of this step
        self._is_open = False  # whether a training forward came after the last step
        self._has_evaluated = False  # whether an evaluation came after the last step
        self._gap = 0  # forwards of this step without gradients, with dropout on, before a training forward
        # The least such number in all steps: so many belong to a step (a teacher's forwards), more are an evaluation.
        told = optimizer is not None and not optimizers
        self._least_gap: int | None = 0 if told else None
        self._suspected = _NONE  # sites on before the first step, where the loop's habits are not known
        # The last flags with a site off, or on in an evaluation, and these sites: most forwards repeat them.
        self._flags_off: tuple[Sequence[bool], frozenset[int]] = ((), _NONE)
        self._flags_on: tuple[Sequence[bool], frozenset[int]] = ((), _NONE)
        self._hook = ForwardHook(self.note_forward)
        self._renew()
        for argument, names in zip(("allow", "exclude"), self._names, strict=True):
            self._sites.check_names(argument, names)
        self._refuse_nothing()
        tell_compilers()
        self._handle = self._root.register_forward_pre_hook(self._hook)
        self._steps = StepHooks(self)
        for each in optimizers:
            self._steps.attach(each)
        if optimizer is None:
            self._steps.find(self._root)

    def __repr__(self) -> str:
        return f"TrainingWatch(step={self._step}, sites={self._sites.count}, findings={len(self._findings)})"

    @property
    def step(self) -> int:
        """Number of optimizer steps so far; set it when a training is resumed."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step

    @property
    def phase(self) -> str | None:
        """The loop's present part, if the loop says so: "training", "evaluation", or None to tell by gradients."""
        return self._phase

    @phase.setter
    def phase(self, phase: str | None) -> None:
        if phase not in _PHASES:
            raise ValueError(f"phase is {phase!r}; expected 'training', 'evaluation' or None")
        self._read_traced()
        self._phase = phase

    @property
    def report(self) -> WatchReport:
        """The mistakes so far, and how much was watched."""
        self._finish(raises=False)
        return WatchReport(
            tuple(self._findings.values()),
            self._sites.count,
            self._step,
            self._training_forwards,
            self._evaluation_forwards,
        )

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Follow the steps of another optimizer.

        Args:
            optimizer: an optimizer that trains the model; the first that is attached counts the steps.

        Returns:
            The watch itself.

        Raises:
            TypeError: if it is no optimizer.
        """
        for each in optimizers_in([optimizer]):
            self._steps.attach(each)
        return self

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow dropout in the evaluations of a `with` block: MC dropout, or statistics of BatchNorm."""
        self._read_traced()
        self._allowing += 1
        try:
            yield
        finally:
            self._read_traced()
            self._allowing -= 1

    def stop(self) -> None:
        """Remove the hooks; the report stays.

        Raises:
            RuntimeError: if strict, and an evaluation before the first step turns out to be wrong.
        """
        self._handle.remove()
        self._steps.remove()
        self._finish(raises=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._strict = self._strict and error is None  # the first error is the one to see
        self.stop()

    def note_forward(self) -> None:
        """Read the flags as before a forward; for loops that call parts of the model and not the model itself."""
        self._read_traced()
        if not self._training_forwards and not self._evaluation_forwards:
            self._renew()  # adapters and schedules may have come since
        flags = self._dropping()
        is_certain = self._phase == "evaluation" or torch.is_inference_mode_enabled()
        if is_certain or not torch.is_grad_enabled():
            self._see_evaluation(flags, is_certain)
        else:
            self._see_training(flags)

    def before_step(self) -> None:
        """Judge the training forwards since the last step; hooks on the optimizers call it before the weights change.

        Raises:
            RuntimeError: if strict, and dropout was off.
        """
        self._read_traced()
        off, self._off = self._off, None
        if off and off not in self._cleared:
            wrong = self._off_by_mistake(off)
            if wrong:
                self._add("PD601", wrong)
            else:
                self._cleared.add(off)

    def after_step(self, counts: bool = True) -> None:
        """Begin the next step; hooks on the optimizers call it.

        Args:
            counts: whether this step is counted; of several optimizers, one counts.
        """
        self.before_step()  # an optimizer with a closure runs the forwards within its step
        self._is_open = self._has_evaluated = False
        if not counts:
            return
        self._least_gap = self._gap if self._least_gap is None else min(self._gap, self._least_gap)
        self._gap, self._suspected = 0, _NONE
        self._step += 1
        if not self._step & (self._step - 1):
            self._renew()  # at steps 1, 2, 4, 8, ...: modules may have been added or exchanged

    def _see_training(self, flags: Sequence[bool]) -> None:
        """Keep the sites that are off in every training forward of the step."""
        self._training_forwards += 1
        self._is_open = True
        self._suspected = _NONE
        if False not in flags:
            self._off = _NONE
            return
        if flags != self._flags_off[0]:
            self._flags_off = (flags, frozenset(i for i, drops in enumerate(flags) if not drops))
        off = self._flags_off[1]
        self._off = off if self._off is None else self._off & off

    def _see_evaluation(self, flags: Sequence[bool], is_certain: bool) -> None:
        """Judge a forward without gradients: an evaluation, or a part of a training step."""
        if self._phase == "training":
            return
        self._evaluation_forwards += 1
        self._has_evaluated = True
        if self._allowing or True not in flags:
            return
        if flags != self._flags_on[0]:
            drops = (i for i, drops in enumerate(flags) if drops)
            self._flags_on = (flags, frozenset(drops) - self._sites.allowed)
        on = self._flags_on[1]
        if not on:
            return
        if not is_certain:
            if self._is_open:
                return  # between a training forward and its optimizer step
            self._gap += 1
            if self._least_gap is None:
                self._suspected = on
                return
            if self._gap <= self._least_gap:
                return
        held = self._sites.held(on)
        if held:
            self._add("PD602", held)

    def _off_by_mistake(self, off: frozenset[int]) -> list[int]:
        """Return the sites whose dropout should be on: neither frozen, nor without a rate, nor on a schedule."""
        sites, wrong = self._sites, []
        for i in sites.held(off):
            module, rate = sites.pairs[i]
            if rate != "training" and getattr(module, rate) == 0:
                path = sites.paths[i]
                # A schedule passes other rates on its way to 0, or falls without an evaluation; one is no mistake.
                if self._has_evaluated and path in self._once_on and path not in self._changing:
                    self._lost.add(path)
                is_lost = path in self._lost
            else:
                is_lost = not sites.is_frozen(i)
            if is_lost:
                wrong.append(i)
        return wrong

    def _add(self, code: str, indexes: Sequence[int]) -> None:
        """Add a finding, and say so if it is the first of its kind."""
        finding = self._findings.get(code)
        is_first = finding is None
        if finding is None:
            place, detail = self._sites.place(indexes, training=code == "PD602")
            has_ranks = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
            rank = dist.get_rank() if has_ranks else None
            finding = WatchFinding(code, place, self._step, len(indexes), detail, rank)
            self._findings[code] = finding
        else:
            self._findings[code] = replace(finding, times=finding.times + 1)
        if self._strict:
            raise RuntimeError(str(finding))
        if is_first:
            warnings.warn(WatchWarning(str(finding)), stacklevel=2)

    def _finish(self, raises: bool) -> None:
        """Judge what waits for a first step, if none has begun."""
        self._read_traced()
        held = self._sites.held(self._suspected)
        self._suspected = _NONE
        if held:
            strict, self._strict = self._strict, self._strict and raises
            try:
                self._add("PD602", held)
            finally:
                self._strict = strict

    def _read_traced(self) -> None:
        """Judge what compiled forwards have left."""
        for name, flags in self._hook.take_traced():
            if len(flags) != len(self._sites.pairs):
                continue  # compiled with other sites
            if name == "training" and self._phase != "evaluation":
                self._see_training(list(flags))
            else:
                self._see_evaluation(list(flags), self._phase == "evaluation")

    def _dropping(self) -> list[bool]:
        """Return which sites would drop now."""
        try:
            return self._sites.dropping()
        except KeyError:  # a rate is held in another way now
            self._renew()
            return self._sites.dropping()

    def _renew(self) -> None:
        """List the sites of the model as it is now."""
        self._sites = WatchedSites(self._root, *self._names)
        for path, rate in self._sites.rates.items():
            if rate != 0 and self._once_on.setdefault(path, rate) != rate:
                self._changing.add(path)
        self._hook.pairs = self._sites.pairs
        self._off = None
        self._flags_off = self._flags_on = ((), _NONE)
        self._cleared: set[frozenset[int]] = set()

    def _refuse_nothing(self) -> None:
        """Say that there is no dropout to watch."""
        if self._sites.count:
            return
        text = "the model has no dropout that can be watched: no module drops, or every rate is 0"
        if self._strict:
            raise ValueError(text)
        warnings.warn(WatchWarning(text), stacklevel=4)


def _listed(argument: str, names: Names) -> Names:
    """Return names as a tuple, also a single name.

    Raises:
        TypeError: if there is something else than paths and classes of modules.
    """
    listed = (names,) if isinstance(names, (str, type)) or not isinstance(names, Iterable) else tuple(names)
    for name in listed:
        if not isinstance(name, str) and not (isinstance(name, type) and issubclass(name, Module)):
            raise TypeError(f"{argument} has {name!r}; expected paths of modules, or classes of modules")
    return listed
