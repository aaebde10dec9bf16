"""From measurements to `results.json`: means, per-seed values and differences with their intervals."""

from __future__ import annotations

from typing import Any

from puredrop.compare.intervals import paired_difference
from puredrop.compare.measure import Measured
from puredrop.compare.tasks import Table, Task
from puredrop.compare.training import Arm

__all__ = ["SCHEMA", "arm_record", "differences"]

SCHEMA = 1


def _figure(per_seed: Table) -> dict[str, Any]:
    return {"mean": float(per_seed.mean()), "per_seed": per_seed.tolist()}


def _prediction(measured: Measured, task: Task) -> dict[str, Any]:
    calibration = measured.test.calibration
    return {
        "error": _figure(task.error(measured.test.error)),
        "nll": _figure(measured.test.nll.mean(axis=1)),
        "calibration_error": None if calibration is None else _figure(calibration),
    }


def arm_record(arm: Arm, one_pass: Measured, members: Measured | None, task: Task) -> dict[str, Any]:
    """Everything about one arm.

    Args:
        arm: after training.
        one_pass: its deterministic pass.
        members: the mean of its members, for the arm with dropout.
        task: what was predicted.

    Returns:
        What JSON can hold; the keys are described in docs/compare.md.
    """
    assert one_pass.training_nll is not None
    training_nll = one_pass.training_nll.mean(axis=1)
    norms = {
        name.removesuffix(".weight"): _figure(value.detach().flatten(1).norm(dim=1).double().cpu().numpy())
        for name, value in arm.best.items()
        if name.endswith(".weight")
    }
    return {
        **_prediction(one_pass, task),
        "training_nll": _figure(training_nll),
        "gap": _figure(one_pass.test.nll.mean(axis=1) - training_nll),
        "weight_norms": norms,
        "mc": None if members is None else _prediction(members, task),
        "epochs": arm.epoch,
        "best_epoch": arm.best_epoch,
        "history": {"training_loss": arm.training_loss, "validation_loss": arm.validation_loss},
        "seconds_per_epoch": sum(arm.seconds) / len(arm.seconds),
    }


def differences(one_pass: dict[str, Measured], members: Measured, task: Task) -> dict[str, Any]:
    """The differences the page claims or does not claim, each paired by seed and row.

    Args:
        one_pass: of each arm.
        members: of the arm with dropout, mean of 50 members.
        task: what was predicted.

    Returns:
        By name; `nll`, `error` and `gap` are dropout minus none, `mc_nll` and `mc_error` members minus one pass,
        `batchwise_nll` and `batchwise_error`, where that arm was trained, batchwise minus dropout.
    """
    none, dropout = one_pass["none"], one_pass["dropout"]
    assert dropout.training_nll is not None
    assert none.training_nll is not None
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
    return {name: paired_difference(*parts).as_dict() for name, parts in tables.items()}
