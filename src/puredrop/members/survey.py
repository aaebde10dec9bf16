"""A first look at a model: what of it drops, how that is reached, and whether many members can run at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

from puredrop._text import first_line
from puredrop.inspection import Sites, observe
from puredrop.inspection.state import restored
from puredrop.inspection.watch import Event, Watch, positions
from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.inputs import Batch
from puredrop.members.instrumented import FORCED, InstrumentedModel, Plan
from puredrop.members.sites import SiteUse
from puredrop.members.thinned import RunStep, runs

__all__ = ["Survey", "survey"]

_ROWS, _MEMBERS = 2, 4
_TOGETHER = 96
"""Members at once: of 784-512-256-10, what so many have in common is a twentieth of their work already."""


@dataclass(frozen=True)
class Survey:
    """What a look has found.

    Args:
        sites: where the model drops.
        plan: how that is reached.
        uses: of one forward.
        runs: of layers that can be computed together.
        slow: why members are run one after the other; "" if many run at once.
        per_member, per_row: bytes of a member, and of a member's row.
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
        """Path of what drops and is no part of any member -> why."""
        return self.plan.skipped

    def at_once(self, rows: int, memory: int) -> int:
        """Members that so many bytes hold, with so many rows; 1 at least."""
        return max(1, min(int(memory // (self.per_member + self.per_row * rows)), _TOGETHER))


def survey(
    root: Module, batch: Batch, members: MemberMasks, read: Callable[[Any], Tensor], *, may_be_silent: bool = False
) -> Survey:
    """Find out how a model is run as an ensemble.

    Args:
        root: the model, unwrapped.
        batch: some rows; two of them are used.
        members: which functions the members are.
        read: from what the model returns to the tensor that is averaged.
        may_be_silent: whether a model will do whose sites all have rate 0.

    Raises:
        ValueError: if no decision of a dropout can be reached, and why.
    """
    few = batch.chosen(torch.arange(_ROWS) % batch.rows)
    sites, plan = _planned(root, few)
    instrumented = InstrumentedModel(root, plan, batch.dim)
    reference = Engine(instrumented, members, read, [], is_batched=False)
    for _ in range(2):
        instrumented.drawing.clear()
        with reference.opened():
            before = positions()
            outputs = reference.outputs(few, [0, 1])
            has_drawn = positions() != before
        if not instrumented.drawing:
            break
        for path in instrumented.drawing:
            plan.skipped[path] = "draws random numbers of its own, which no key reaches; it is off"
    if has_drawn:
        plan.skipped.setdefault("(model)", "draws random numbers in eval mode, too: its outputs are no pure function")
    uses = tuple(reference.uses)
    if not may_be_silent and not any(_is_random(use) for use in uses):
        raise ValueError(_nothing(sites, plan))
    for site in sites:  # what was seen to drop in training mode is a part of members, or named
        is_used = any(use.path == site.path or use.path.startswith(f"{site.path}/") for use in uses)
        if site.is_reached and site.p and not is_used:
            plan.skipped.setdefault(site.path, "drops in training mode, but was not reached")
    found_runs = [] if batch.dim else _runs(root, plan)
    own = [steps for steps in found_runs if not any(step.site in plan.skipped for step in steps)]
    found = Survey(sites, plan, uses, own, "", 0.0, 0.0)
    # One by one in the cache, as many rows will be, so that memory is seen as it will be.
    return _tried(Engine(instrumented, members, read, own, is_batched=True, cache=1), few, outputs, found)


def _planned(root: Module, few: Batch) -> tuple[Sites, Plan]:
    """Where the model drops, and how that is reached."""
    try:
        seen = observe(Watch, root, few.args, few.kwargs)
    except Exception as error:  # such as a detector's, which wants targets in training mode
        why = f"could not be run in training mode ({first_line(error, 100)}): functions that drop there are unknown"
        return Sites(), Plan(skipped={"(model)": why})
    return seen.sites, _plan(seen.training.found, seen.evaluated.found)


def _runs(root: Module, plan: Plan) -> list[list[RunStep]]:
    """In the modes in which members are run."""
    with restored(root):
        root.eval()
        for path in plan.owners:
            root.get_submodule(path).training = True
        return runs(root)


def _is_random(use: SiteUse) -> bool:
    return use.p not in (0.0, 1.0)


def _plan(training: dict[Any, Any], evaluated: dict[Any, Any]) -> Plan:
    """How functions that drop are reached; layers are found when the model is taken over."""
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
    """Why there is no ensemble."""
    if not sites:
        return "model has no dropout: neither seen in a forward nor held by a module; train it with dropout first"
    if plan.skipped:
        path, why = next(iter(plan.skipped.items()))
        return f"model drops nowhere that a key reaches; {path}: {why} (puredrop.sites lists every place)"
    if not any(site.is_reached for site in sites):
        return f"model has dropout that its forward never calls: {', '.join(site.path for site in sites)}"
    rates = ", ".join(f"{site.path or '(model)'} p={site.p:g}" for site in sites if site.p is not None)
    return f"model has only dropout that leaves nothing to chance: {rates}; set the rates it was trained with"


def _tried(engine: Engine, few: Batch, expected: Tensor, found: Survey) -> Survey:
    """Whether many members at once give what they give one by one, and the memory they take."""
    seen: dict[tuple[int, int], list[int]] = {}
    try:
        with engine.opened():
            for members, rows in itertools.product((_MEMBERS, 2 * _MEMBERS), (1, _ROWS)):
                with _Sizes() as sizes:
                    outputs = engine.outputs(few.chosen(torch.arange(rows)), range(members))
                seen[members, rows] = sizes.bytes
        outputs = outputs[:2]
    except Exception as error:  # whatever a model's forward does with a tensor that stands for many
        return replace(found, slow=f"many members at once: {first_line(error, 100)}", per_row=_of_one(few))
    # To rounding, which lies in half precision at 2^-8 of a number, and adds up.
    share = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 0.05
    if not torch.allclose(outputs, expected, rtol=10 * share, atol=share * float(expected.abs().max()), equal_nan=True):
        why = "many members at once give other numbers than one by one (in-place dropout of what others read?)"
        return replace(found, slow=why, per_row=_of_one(few))
    per_row, per_member = 1.0, 0.0
    for few_one, few_two, many_one, many_two in zip(*seen.values(), strict=False):
        # An operator's bytes are of the form a + b members + c rows + d members * rows.
        of_row = (many_two - many_one - few_two + few_one) / _MEMBERS
        per_row = max(per_row, of_row)
        per_member = max(per_member, (many_one - few_one) / _MEMBERS - of_row)
    return replace(found, per_row=per_row, per_member=per_member)


def _of_one(few: Batch) -> float:
    """Bytes of a row of a member that is run alone: as of the input, since the rest is freed before the next."""
    return sum(one.nbytes for one in few.tensors) / few.rows


class _Sizes(TorchDispatchMode):
    """The bytes that each operator reads and writes, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's hook."""
        output = func(*args, **(kwargs or {}))
        seen: dict[int, int] = {}
        for one in (*args, output):
            if isinstance(one, Tensor):
                seen[id(one)] = one.nbytes
            elif isinstance(one, (tuple, list)):  # such as of torch.stack
                seen |= [(id(each), each.nbytes) for each in one if isinstance(each, Tensor)]
        self.bytes.append(sum(seen.values()))
        return output
