"""From measurements to `results.json`: means, per-seed values and differences with their intervals."""

from __future__ import annotations

from typing import Any

from puredrop.compare.measure import MEMBERS, Measured, Members
from puredrop.compare.rejection import SHARES, reject
from puredrop.compare.tasks import Judged, Table, Task
from puredrop.compare.training import Arm
from puredrop.report.intervals import paired_difference

__all__ = ["ENOUGH", "SCHEMA", "arm_record", "differences", "samples"]

SCHEMA = 1
ENOUGH = 0.002
"""Nats: members are enough where all of them are not better by so much. Absolute, since a density has a unit."""


def _figure(per_seed: Table) -> dict[str, Any]:
    return {"mean": float(per_seed.mean()), "per_seed": per_seed.tolist()}


def _prediction(judged: Judged, task: Task) -> dict[str, Any]:
    return {
        "error": _figure(task.error(judged.error)),
        "nll": _figure(judged.nll.mean(axis=1)),
        "calibration_error": None if judged.calibration is None else _figure(judged.calibration),
        "rejection": _rejection(judged, task),
    }


def _rejection(judged: Judged, task: Task) -> dict[str, Any] | None:
    if judged.doubt is None:
        return None
    found = reject(judged.doubt, judged.error)
    errors = [float(task.error(column[:, None]).mean()) for column in found.risk.T]
    return {"area": _figure(task.error(found.area)), "share": list(SHARES), "error": errors}


def arm_record(arm: Arm, one_pass: Measured, members: Members | None, task: Task) -> dict[str, Any]:
    """Everything about one arm.

    Args:
        arm: after training.
        one_pass: its deterministic pass, or the mean of its networks.
        members: the mean of its members, for the arm with dropout.
        task: what was predicted.

    Returns:
        What JSON can hold; the keys are described in docs/compare.md.
    """
    training_nll = one_pass.training_nll.mean(axis=1)
    norms = {
        name.removesuffix(".weight"): _figure(value.detach().flatten(1).norm(dim=1).double().cpu().numpy())
        for name, value in arm.best.items()
        if name.endswith(".weight")
    }
    return {
        **_prediction(one_pass.test, task),
        "training_nll": _figure(training_nll),
        "gap": _figure(one_pass.test.nll.mean(axis=1) - training_nll),
        "weight_norms": norms,
        "mc": None if members is None else _prediction(members.test, task),
        "epochs": arm.epoch,
        "best_epoch": arm.best_epoch,
        "history": {"training_loss": arm.training_loss, "validation_loss": arm.validation_loss},
        "seconds_per_epoch": sum(arm.seconds) / len(arm.seconds),
    }


def samples(one_pass: Measured, members: Members) -> dict[str, Any]:
    """How many members are enough.

    Args:
        one_pass: of the arm with dropout.
        members: of it.

    Returns:
        `members`, numbers of them; for each the `nll` of their mean, its difference `to_one_pass`, and to all members,
        `excess`; `enough`, the fewest from which on the excess is below .002 nats, at the upper end of its interval, or
        None where only all of them are.
    """
    every = members.nll_of[MEMBERS]
    excess = {number: paired_difference(nll - every) for number, nll in members.nll_of.items() if number < MEMBERS}
    short = [number for number, found in excess.items() if found.high >= ENOUGH]
    return {
        "members": list(members.nll_of),
        "nll": [_figure(nll.mean(axis=1)) for nll in members.nll_of.values()],
        "to_one_pass": [paired_difference(nll - one_pass.test.nll).as_dict() for nll in members.nll_of.values()],
        "excess": [found.as_dict() for found in excess.values()],
        "enough": min((number for number in excess if number > max(short, default=0)), default=None),
    }


def differences(one_pass: dict[str, Measured], members: Members, task: Task) -> dict[str, Any]:
    """The differences the page claims or does not claim, each paired by seed and row.

    Args:
        one_pass: of each arm; of the arm networks the mean of five.
        members: of the arm with dropout, mean of 50 members.
        task: what was predicted.

    Returns:
        By name; `nll`, `error` and `gap` are dropout minus none, `mc_nll` and `mc_error` members minus one pass,
        `mc_area` that of the area under the curve of rejection; `batchwise_nll` and `batchwise_error`, where that arm
        was trained, batchwise minus dropout; `networks_nll`, `networks_error` and `networks_area`, where those were,
        the mean of five networks minus that of members.
    """
    none, dropout = one_pass["none"], one_pass["dropout"]
    nll = dropout.test.nll - none.test.nll
    tables: dict[str, tuple[Table, ...]] = {
        "nll": (nll,),
        "error": (task.error_difference(none.test.error, dropout.test.error),),
        "gap": (nll, none.training_nll - dropout.training_nll),
        "mc_nll": (members.test.nll - dropout.test.nll,),
        "mc_error": (task.error_difference(dropout.test.error, members.test.error),),
    }
    if "batchwise" in one_pass:
        shared = one_pass["batchwise"].test
        tables["batchwise_nll"] = (shared.nll - dropout.test.nll,)
        tables["batchwise_error"] = (task.error_difference(dropout.test.error, shared.error),)
    if dropout.test.doubt is not None:
        tables["mc_area"] = (_area(dropout.test, members.test, task),)
    if "networks" in one_pass:
        several = one_pass["networks"].test
        tables["networks_nll"] = (several.nll - members.test.nll,)
        tables["networks_error"] = (task.error_difference(members.test.error, several.error),)
        tables["networks_area"] = (_area(members.test, several, task),)
    return {name: paired_difference(*parts).as_dict() for name, parts in tables.items()}


def _area(before: Judged, after: Judged, task: Task) -> Table:
    """Of the areas under the curves of rejection."""
    assert before.doubt is not None
    assert after.doubt is not None
    return task.error_difference(reject(before.doubt, before.error).area, reject(after.doubt, after.error).area)
