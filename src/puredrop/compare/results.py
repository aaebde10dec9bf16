"""Results of a run as `results.json` holds them: means, per-seed values, and differences with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puredrop._files import check_format, read_json
from puredrop.compare.evaluation import COVERAGES, MEMBERS, Evaluation, MemberEvaluation, selective_prediction
from puredrop.compare.tasks import Judged, Table, Task
from puredrop.compare.training import Arm
from puredrop.report.intervals import paired_difference

__all__ = ["ENOUGH", "FORMAT", "arm_record", "differences", "load_results", "members_needed"]

FORMAT = 2
"""Number of the file's format; raised when a key changes its name or meaning."""
ENOUGH = 0.002
"""Nats: members are enough where all of them are not better by so much. Absolute, since a density has a unit."""


def load_results(path: Path) -> dict[str, Any]:
    """Read a run's results.json.

    Raises:
        ValueError: if the file is not what was written or has another format; the message names the file.
        OSError: if it cannot be read.
    """
    results = read_json(path, "delete it and run compare again")
    number = results.get("format", results.get("schema"))  # called "schema" before format 2
    check_format(path, number, FORMAT, "delete the file and run compare again")
    return results


def _summary(per_seed: Table) -> dict[str, Any]:
    return {"mean": float(per_seed.mean()), "per_seed": per_seed.tolist()}


def _prediction(judged: Judged, task: Task) -> dict[str, Any]:
    return {
        "error": _summary(task.error(judged.error)),
        "nll": _summary(judged.nll.mean(axis=1)),
        "calibration_error": None if judged.calibration is None else _summary(judged.calibration),
        "selective_prediction": _selective_prediction(judged, task),
    }


def _selective_prediction(judged: Judged, task: Task) -> dict[str, Any] | None:
    if judged.uncertainty is None:
        return None
    curve = selective_prediction(judged.uncertainty, judged.error)
    errors = [float(task.error(column[:, None]).mean()) for column in curve.risk.T]
    return {"area": _summary(task.error(curve.area)), "coverage": list(COVERAGES), "error": errors}


def arm_record(arm: Arm, one_pass: Evaluation, members: MemberEvaluation | None, task: Task) -> dict[str, Any]:
    """Return everything about one arm as JSON holds it; docs/compare.md describes the keys.

    Args:
        arm: after training.
        one_pass: the evaluation of one deterministic pass, or of the mean of five networks.
        members: the evaluation of the members, for the arm with dropout; else None.
        task: what was predicted.
    """
    training_nll = one_pass.training_nll.mean(axis=1)
    norms = {
        name.removesuffix(".weight"): _summary(value.detach().flatten(1).norm(dim=1).double().cpu().numpy())
        for name, value in arm.best.items()
        if name.endswith(".weight")
    }
    return {
        **_prediction(one_pass.test, task),
        "training_nll": _summary(training_nll),
        "gap": _summary(one_pass.test.nll.mean(axis=1) - training_nll),
        "weight_norms": norms,
        "mc": None if members is None else _prediction(members.test, task),
        "epochs": arm.epoch,
        "best_epoch": arm.best_epoch,
        "history": {"training_loss": arm.training_loss, "validation_loss": arm.validation_loss},
        "seconds_per_epoch": sum(arm.seconds) / len(arm.seconds),
    }


def members_needed(one_pass: Evaluation, members: MemberEvaluation) -> dict[str, Any]:
    """Return how many members are enough, and the NLL of fewer.

    Args:
        one_pass: the evaluation of one pass of the arm with dropout.
        members: the evaluation of that arm's members.

    Returns:
        `members`, numbers of members; for each the `nll` of their mean, the difference `to_one_pass`, and the
        difference to all members, `excess`; `enough`, the fewest from which on the upper end of the interval of the
        excess is below 0.002 nats, or None where only all of them are.
    """
    whole = members.nll_of[MEMBERS]
    excess = {number: paired_difference(nll - whole) for number, nll in members.nll_of.items() if number < MEMBERS}
    too_few = [number for number, difference in excess.items() if difference.high >= ENOUGH]
    return {
        "members": list(members.nll_of),
        "nll": [_summary(nll.mean(axis=1)) for nll in members.nll_of.values()],
        "to_one_pass": [paired_difference(nll - one_pass.test.nll).as_dict() for nll in members.nll_of.values()],
        "excess": [difference.as_dict() for difference in excess.values()],
        "enough": min((number for number in excess if number > max(too_few, default=0)), default=None),
    }


def differences(one_pass: dict[str, Evaluation], members: MemberEvaluation, task: Task) -> dict[str, Any]:
    """Return the differences that the page claims or does not claim, each paired by seed and row.

    Args:
        one_pass: the evaluation of each arm; of the arm networks the mean of five networks.
        members: the evaluation of the mean of 50 members of the arm with dropout.
        task: what was predicted.

    Returns:
        By name. `nll`, `error` and `gap` are dropout minus none; `mc_nll` and `mc_error` are members minus one pass,
        `mc_area` likewise for the area under the risk-coverage curve. Where these arms were trained,
        `batchwise_nll` and `batchwise_error` are batchwise minus dropout, and `networks_nll`, `networks_error` and
        `networks_area` are the mean of five networks minus the mean of members.
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
        batchwise = one_pass["batchwise"].test
        tables["batchwise_nll"] = (batchwise.nll - dropout.test.nll,)
        tables["batchwise_error"] = (task.error_difference(dropout.test.error, batchwise.error),)
    if dropout.test.uncertainty is not None:
        tables["mc_area"] = (_area_difference(dropout.test, members.test, task),)
    if "networks" in one_pass:
        networks = one_pass["networks"].test
        tables["networks_nll"] = (networks.nll - members.test.nll,)
        tables["networks_error"] = (task.error_difference(members.test.error, networks.error),)
        tables["networks_area"] = (_area_difference(members.test, networks, task),)
    return {name: paired_difference(*summands).as_dict() for name, summands in tables.items()}


def _area_difference(before: Judged, after: Judged, task: Task) -> Table:
    """Return the difference of the areas under the risk-coverage curves."""

    def area(judged: Judged) -> Table:
        assert judged.uncertainty is not None
        return selective_prediction(judged.uncertainty, judged.error).area

    return task.error_difference(area(before), area(after))
