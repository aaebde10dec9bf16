"""The conclusion from all questions: why dropout regularises, the verdict, and the usual explanations that held."""

from __future__ import annotations

from collections.abc import Iterator

from puredrop.explanation.averages import Averages
from puredrop.explanation.coadaptation import Coadaptation
from puredrop.explanation.penalty import Penalty
from puredrop.explanation.subject import Case, Question
from puredrop.report.section import Claim, Section

__all__ = ["QUESTION", "claims", "section", "verdict"]

QUESTION = Question("why", "So why does it regularise?")
_NEAR = 0.1
"""Largest relative difference at which the approximated penalty is called equal to the measured one."""
_PERTURBATIONS = {
    "random": ("units removed at random", 0.75),
    "largest": ("the largest activations removed", 0.05),
    "noise": ("noise of the activations' size", 1.0),
}
"""Kind of a curve -> its name in a claim, and the size at which two models are compared."""


def section(case: Case) -> Section:
    """Summarise the measurements of each way in which dropout can regularise."""
    penalty, noise = case.results.get("penalty"), case.results.get("gradient_noise")
    parts = []
    if penalty is not None:
        parts.append(
            f"It adds a cost of {penalty.measured:.3g} to this network's loss of {penalty.loss:.3g}, paid for "
            f"answers that change when units are missing. L2 says {penalty.ratio:.2f} of that cost."
        )
    if "coadaptation" in case.results:
        dropped, _ = case.results["coadaptation"]
        curve = dropped.curves["random"]
        at = curve.sizes.index(0.75)
        percent = dropped.task == "classification"
        score = f"{curve.score[at]:.0%} of rows right" if percent else f"a mean squared error of {curve.score[at]:.3g}"
        parts.append(
            f"To pay less, answers are spread over many units: with a quarter of them left there is still {score}."
        )
    if noise is not None and noise.rows > 0:
        parts.append(
            f"And it shakes every step, with {noise.masks / noise.rows:.1f} times the variance that the choice of "
            "rows has."
        )
    parts.append("Which of these made the difference on new rows, one trained network cannot tell.")
    return QUESTION.answer(" ".join(parts), "", "", "")


def verdict(case: Case) -> str:
    """Return what was measured in one sentence."""
    adds = "What dropout adds to the loss of this network could not be measured"
    penalty: Penalty | None = case.results.get("penalty")
    if penalty is not None:
        adds = f"Dropout adds {penalty.measured:.3g} to a training loss of {penalty.loss:.3g} of this network"
    means: Averages = case.results["averages"]
    number, unit = means.numbers[-1], means.name
    if means.excludes_zero:
        verb = "lowers" if means.difference[0] < 0 else "raises"
        return (
            f"{adds}, and averaging {number} of its sub-networks {verb} the {unit} of one pass from "
            f"{means.one_pass:.4f} to {means.score[-1]:.4f}."
        )
    return f"{adds}, and averaging {number} of its sub-networks makes no difference to the {unit} we could find."


def claims(case: Case) -> Iterator[Claim]:
    """Yield the three usual explanations of dropout, with whether each held."""
    if "coadaptation" in case.results:
        yield from _reliance(*case.results["coadaptation"])
    if "weight_scaling_gap" in case.results:
        yield _one_pass(case.results["averages"], case.results["weight_scaling_gap"].to_arithmetic.value)
    penalty: Penalty | None = case.results.get("penalty")
    if penalty is not None:
        ratio, error = penalty.ratio, penalty.ratio_error
        is_near = penalty.is_exact or abs(ratio - 1) < _NEAR
        says = f"the L2-like form says {ratio:.2f} ± {1.96 * error:.2f} of what dropout adds to the loss"
        yield Claim("l2", is_near, f"“it acts like L2”: {says}")


def _reliance(dropped: Coadaptation, undropped: Coadaptation | None) -> Iterator[Claim]:
    name = "“units cannot rely on each other”"
    if undropped is None:
        yield Claim("reliance", False, f"{name}: not to be told without a network that was trained without dropout")
        return
    sign = 1 if dropped.task == "classification" else -1
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for kind, (what, size) in _PERTURBATIONS.items():
        curve = dropped.curves[kind]
        difference = curve.minus(undropped.curves[kind])[curve.sizes.index(size)]
        kinds[difference.excludes_zero and sign * difference.estimate > 0].append(what)
    for is_better, names in kinds.items():
        if names:
            verb = "better" if is_better else "not shown to be better"
            yield Claim("reliance", is_better, f"{name}: {verb} than the undropped model under {_and(names)}")


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _one_pass(means: Averages, gap: float) -> Claim:
    name, away = "“one pass averages 2^n networks”", f"it is {gap:.4f} (rms) from their mean"
    if not means.excludes_zero:
        number = means.numbers[-1]
        return Claim("one-pass", True, f"{name}: {away}, and no worse or better than that of {number}, as far as seen")
    verb = "worse" if means.difference[0] < 0 else "better"
    return Claim(
        "one-pass", False, f"{name}: {away}, and {verb} than it by {abs(means.difference[0]):.4f} ({means.name})"
    )
