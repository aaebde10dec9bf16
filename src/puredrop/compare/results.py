"""From measurements to `results.json`: means, per-seed values and differences with their intervals."""

from __future__ import annotations

from typing import Any

from puredrop.compare.intervals import paired_difference
from puredrop.compare.measure import Measured, Table
from puredrop.compare.training import Arm

__all__ = ["SCHEMA", "arm_record", "differences"]

SCHEMA = 1


def _figure(per_seed: Table) -> dict[str, Any]:
    return {"mean": float(per_seed.mean()), "per_seed": per_seed.tolist()}


def _prediction(measured: Measured) -> dict[str, Any]:
    return {
        "error": _figure(measured.error.mean(axis=1)),
        "nll": _figure(measured.nll.mean(axis=1)),
        "calibration_error": _figure(measured.calibration),
    }


def arm_record(arm: Arm, one_pass: Measured, members: Measured | None) -> dict[str, Any]:
    """Everything about one arm.

    Args:
        arm: after training.
        one_pass: its deterministic pass.
        members: the mean of its members, for the arm with dropout.

    Returns:
        What JSON can hold; the keys are described in docs/compare.md.
    """
    assert one_pass.training_nll is not None
    training_nll = one_pass.training_nll.mean(axis=1)
    norms = {
        name.removesuffix(".weight"): _figure(value.detach().flatten(1).norm(dim=1).double().numpy())
        for name, value in arm.best.items()
        if name.endswith(".weight")
    }
    return {
        **_prediction(one_pass),
        "training_nll": _figure(training_nll),
        "gap": _figure(one_pass.nll.mean(axis=1) - training_nll),
        "weight_norms": norms,
        "mc": None if members is None else _prediction(members),
        "epochs": arm.epoch,
        "best_epoch": arm.best_epoch,
        "history": {"training_loss": arm.training_loss, "validation_nll": arm.validation_nll},
        "seconds_per_epoch": sum(arm.seconds) / len(arm.seconds),
    }


def differences(none: Measured, dropout: Measured, members: Measured) -> dict[str, Any]:
    """The five differences the page claims or does not claim, each paired by seed and row.

    Args:
        none: the arm without dropout, one pass.
        dropout: the arm with dropout, one pass.
        members: the same arm, mean of 50 members.

    Returns:
        By name; `nll`, `error` and `gap` are dropout minus none, `mc_nll` and `mc_error` members minus one pass.
    """
    assert dropout.training_nll is not None
    assert none.training_nll is not None
    nll = dropout.nll - none.nll
    tables = {
        "nll": (nll,),
        "error": (dropout.error - none.error,),
        "gap": (nll, none.training_nll - dropout.training_nll),
        "mc_nll": (members.nll - dropout.nll,),
        "mc_error": (members.error - dropout.error,),
    }
    return {name: paired_difference(*parts).as_dict() for name, parts in tables.items()}
