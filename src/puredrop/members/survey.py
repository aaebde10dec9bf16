"""The survey of a model: where it drops, how that is reached, and whether many members can run at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._text import first_line, listed
from puredrop._torch import watch_operators
from puredrop.inspection import Sites, observe, outside_positions
from puredrop.inspection.axes import Axis
from puredrop.inspection.duplicate import StrayError, duplicate
from puredrop.inspection.finite_weights import check_weights
from puredrop.inspection.state import generators_restored
from puredrop.inspection.watch import Event, Watch, positions
from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.inputs import Batch
from puredrop.members.instrumented import FORCED, InstrumentedModel, Plan
from puredrop.members.placement import find_axes
from puredrop.members.sites import Axes, SiteInput, SiteUse, guessed_axis
from puredrop.members.thinned import RunStep, runs

__all__ = ["Survey", "survey"]

_ROWS, _MEMBERS = 2, 4
_FIRST = Axis(0, 1, 1)
_TOGETHER = 96
"""The most members at once: for 784-512-256-10 the work that so many share is a twentieth of their own."""


@dataclass(frozen=True)
class Survey:
    """The facts that a survey of a model collects.

    Args:
        sites: every place where the model drops.
        plan: how members reach these places.
        uses: the uses of sites in one forward.
        runs: layers that can be computed together.
        slow: the reason for running members one after the other; "" if many run at once.
        per_member, per_row: bytes of a member, and of one row of a member.
    """

    sites: Sites
    plan: Plan
    uses: tuple[SiteUse, ...]
    runs: list[list[RunStep]]
    slow: str
    per_member: float
    per_row: float

    @property
    def skipped(self) -> dict[str, str]:
        """Path of a module or call that drops and is off in all members -> the reason."""
        return self.plan.skipped

    def at_once(self, rows: int, memory: int) -> int:
        """Return the number of members that fit into so many bytes with so many rows, 1 at least."""
        return max(1, min(int(memory // (self.per_member + self.per_row * rows)), _TOGETHER))


def survey(
    root: Module, batch: Batch, members: MemberMasks, read: Callable[[Any], Tensor], *, may_be_silent: bool = False
) -> Survey:
    """Find out how a model is run as an ensemble.

    Args:
        root: the model, unwrapped.
        batch: some rows; two of them are used.
        members: the masks of all members.
        read: function from what the model returns to the tensor that is averaged.
        may_be_silent: whether a model is accepted whose sites all have rate 0.

    Raises:
        ValueError: if no decision of a dropout can be reached, and why.
    """
    few = batch.select(torch.arange(_ROWS) % batch.rows)
    with generators_restored():
        return _surveyed(root, few, members, read, may_be_silent)


def _surveyed(
    root: Module, few: Batch, members: MemberMasks, read: Callable[[Any], Tensor], may_be_silent: bool
) -> Survey:
    sites, plan = _planned(root, few)
    instrumented = InstrumentedModel(root, plan, few.dim)
    reference = Engine(instrumented, members, read, [], is_batched=False)
    inputs: dict[tuple[str, int], SiteInput] = {}
    reference.see = lambda site, _: inputs.update({(site.path, site.call): site})
    while True:  # each round switches off a module, so that it ends
        inputs.clear()
        before = positions(), outside_positions()
        with reference.opened():
            outputs = reference.outputs(few, [0, 1])
        plan.draws = (positions(), outside_positions()) != before
        if not plan.draws:
            break
        # Who drew? Perhaps another thread, so operators are watched, which takes longer and sees this thread alone.
        instrumented.drawing.clear()
        with reference.opened(), watch_operators(instrumented.note_draw):
            reference.outputs(few, [0, 1])
        if not instrumented.drawing:
            break
        for path in instrumented.drawing:
            plan.skipped[path] = "draws random numbers of its own, which no key reaches; it is off"
    if plan.draws:
        plan.skipped.setdefault("(model)", "draws random numbers in eval mode, too: its outputs are no pure function")
    check_weights(root, outputs)
    silent = {(use.path, use.call) for use in reference.uses if not _is_random(use)}
    trial = Engine(instrumented, members, read, [], is_batched=False, intervention=_keep)
    plan.axes = find_axes(root, few, inputs, silent, trial)
    if any(_is_elsewhere(site, plan.axes, few.rows) for site in inputs.values()):
        with reference.opened():
            outputs = reference.outputs(few, [0, 1])
    uses = tuple(reference.uses)
    if not may_be_silent and not any(_is_random(use) for use in uses):
        raise ValueError(_nothing(sites, plan))
    used = {part for use in uses for part in itertools.accumulate(use.path.split("/"), "{}/{}".format)}
    for site in sites:  # a site that dropped in training mode belongs to members, or is reported
        if site.is_reached and site.p and site.path not in used:
            plan.skipped.setdefault(site.path, "drops in training mode, but was not reached")
    candidates = [] if few.dim else _runs(root, plan)
    reached = [steps for steps in candidates if all(_is_compactable(step.site, plan) for step in steps)]
    untried = Survey(sites, plan, uses, reached, "", 0.0, 0.0)
    # cache=1 runs one member after the other in a run of layers, as it is with many rows: so memory is measured.
    return _tried(Engine(instrumented, members, read, reached, is_batched=True, cache=1), few, outputs, untried)


def _keep(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
    """Return the input: nothing is dropped."""
    return input


def _is_elsewhere(site: SiteInput, axes: Axes, rows: int) -> bool:
    """Return whether rows lie elsewhere than the layer's own word has it."""
    guess = guessed_axis(site, rows)
    return axes.get((site.path, site.call), guess) != guess


def _is_compactable(path: str, plan: Plan) -> bool:
    """Return whether a site belongs to the members, and rows are its first dimension."""
    return path not in plan.skipped and plan.axes.get((path, 0), _FIRST) == _FIRST


def _planned(root: Module, few: Batch) -> tuple[Sites, Plan]:
    """Return where the model drops, and the plan of how members reach it."""
    try:
        seen = observe(Watch, root, few.args, few.kwargs)
    except StrayError:
        raise
    except Exception as error:  # such as a detector's, which wants targets in training mode
        why = f"could not be run in training mode ({first_line(error, 100)}): functions that drop there are unknown"
        return Sites(), Plan(skipped={"(model)": why})
    return seen.sites, _plan(seen.training.calls, seen.evaluated.calls)


def _runs(root: Module, plan: Plan) -> list[list[RunStep]]:
    """Return the runs of layers in the modes in which members run."""
    model = duplicate(root).eval()
    for path in plan.owners:
        model.get_submodule(path).training = True
    return runs(model)


def _is_random(use: SiteUse) -> bool:
    return use.p not in (0.0, 1.0)


def _plan(training: dict[Any, Any], evaluated: dict[Any, Any]) -> Plan:
    """Plan how functions that drop are reached; layers are found when the model is instrumented."""
    plan, names = Plan(), {function.__name__.rstrip("_") for function in FORCED}
    for key, event in training.items():
        if not isinstance(event, Event):
            continue
        owner = event.path.rpartition(":")[0]
        if event.kind in ("draw", "unseen"):
            plan.skipped[event.path] = event.note or "draws random numbers of its own"
        elif event.drops:
            again = evaluated.get(key)
            is_called = isinstance(again, Event) and event.kind in names and again.p == event.p
            (plan.forced if is_called else plan.owners).add(owner)
    plan.forced -= plan.owners
    return plan


def _nothing(sites: Sites, plan: Plan) -> str:
    """Return the reason why there is no ensemble."""
    if not sites:
        return "model has no dropout: neither seen in a forward nor held by a module; train it with dropout first"
    if plan.skipped:
        path, why = next(iter(plan.skipped.items()))
        return f"model drops nowhere that a key reaches; {path}: {why} (puredrop.sites lists every place)"
    if not any(site.is_reached for site in sites):
        return f"model has dropout that its forward never calls: {listed(site.path for site in sites)}"
    rates = listed(f"{site.path or '(model)'} p={site.p:g}" for site in sites if site.p is not None)
    return f"model has only dropout that leaves nothing to chance: {rates}; set the rates it was trained with"


def _tried(engine: Engine, few: Batch, expected: Tensor, survey: Survey) -> Survey:
    """Return the survey with the memory of members, and with the reason if many at once differ from one by one.

    Four forwards, of twice as many members and rows each, give the bytes of every operator as a + b members + c rows
    + d members rows. Only b and d matter, and fewer forwards cannot tell them from a (weights) and c (shared inputs).
    """
    seen: dict[tuple[int, int], list[int]] = {}
    try:
        with engine.opened():
            for members, rows in itertools.product((_MEMBERS, 2 * _MEMBERS), (1, _ROWS)):
                sizes = seen[members, rows] = []
                with watch_operators(partial(_note_bytes, sizes)):
                    outputs = engine.outputs(few.select(torch.arange(rows)), range(members))
        outputs = outputs[:2]
    except Exception as error:  # any error of a model's forward with a tensor that stands for many members
        return replace(survey, slow=f"many members at once: {first_line(error, 100)}", per_row=_of_one(few))
    # Equal up to rounding, which in half precision is 2^-8 of a number, and adds up.
    share = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 0.05
    largest = float(expected.abs().nan_to_num(0, posinf=0).max())
    if not torch.allclose(outputs, expected, rtol=10 * share, atol=share * largest, equal_nan=True):
        why = "many members at once give other numbers than one by one (in-place dropout of what others read?)"
        return replace(survey, slow=why, per_row=_of_one(few))
    per_row, per_member = 1.0, 0.0
    for few_one, few_two, many_one, many_two in zip(*seen.values(), strict=False):
        of_row = (many_two - many_one - few_two + few_one) / _MEMBERS
        per_row = max(per_row, of_row)
        per_member = max(per_member, (many_one - few_one) / _MEMBERS - of_row)
    return replace(survey, per_row=per_row, per_member=per_member)


def _of_one(few: Batch) -> float:
    """Return the bytes per row that stay allocated when members run one after the other: those of the inputs."""
    return sum(tensor.nbytes for tensor in few.tensors) / few.rows


def _note_bytes(noted: list[int], operator: Any, values: tuple[Any, ...]) -> None:
    """Append the bytes of an operator's tensors, each counted once."""
    sizes: dict[int, int] = {}
    for value in values:
        if isinstance(value, Tensor):
            sizes[id(value)] = value.nbytes
        elif isinstance(value, (tuple, list)):  # such as of torch.stack
            sizes |= [(id(item), item.nbytes) for item in value if isinstance(item, Tensor)]
    noted.append(sum(sizes.values()))
