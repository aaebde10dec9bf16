"""What the page says to each question, in words and pictures, from what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from puredrop.explanation.averages import Averages
from puredrop.explanation.coadaptation import Coadaptation
from puredrop.explanation.drawing import power_of_two
from puredrop.explanation.gradient_noise import GradientNoise
from puredrop.explanation.member_visits import MemberVisits
from puredrop.explanation.penalty import Penalty
from puredrop.explanation.ridge import Descent, Ridge
from puredrop.explanation.unit_over_masks import UnitOverMasks
from puredrop.explanation.variance_shift import VarianceShift
from puredrop.explanation.weight_scaling_gap import WeightScalingGap
from puredrop.report.section import Section, signed

__all__ = ["QUESTIONS", "batchnorm", "division", "doubt", "l2", "network", "noise", "one_pass", "reliance", "why"]

QUESTIONS = {
    "network": "How does dropout work?",
    "division": "Why divide by 1 − p?",
    "reliance": "Do units stop relying on each other?",
    "one-pass": "Does one pass stand for all of them?",
    "l2": "Does it act like L2?",
    "noise": "Is it also noise?",
    "doubt": "Does it know when it is wrong?",
    "batchnorm": "Does it disturb BatchNorm?",
    "why": "So why does it regularise?",
}


def _section(id: str, sentence: str, number: str, label: str, how: str, *figures: Any, drawing: Any = None) -> Section:
    return Section(id, QUESTIONS[id], sentence, number, label, figures, how, drawing)


def network(visits: MemberVisits, drawing: dict[str, Any], is_replayed: bool) -> Section:
    """The drawing, 2^n and the masks drawn."""
    all_differ = visits.distinct == visits.draws
    seen = "all of them different" if all_differ else f"{visits.distinct:,} of them different"
    worst = max(visits.worst(path) for path in visits.keep)
    is_class = visits.task == "classification"
    apart = f"{visits.disagreement:.1%}" if is_class else f"{visits.disagreement:.3g}"
    what = "of rows two sub-networks predict another class" if is_class else "(rms) is between two of their predictions"
    sentence = (
        f"In training each of {visits.units:,} units is dropped at random, for every row and step anew: one of "
        f"{power_of_two(visits.units)} sub-networks that share their weights. In eval mode every unit works."
    )
    drawn = f"{visits.draws:,} masks were drawn as training draws them"
    if is_replayed:
        drawn = f"Training used {visits.draws:,} masks, drawn again here from seed and step"
    how = (
        f"The button steps through real members, whose masks come from their seed and number; the drawing shows a few "
        f"of each site's units. {drawn}: {seen}; no unit was kept "
        f"more or less often than its rate says, up to {worst:.1f} standard errors. On {apart} {what} "
        f"({visits.members} members)."
    )
    if drawing["more"]:
        how += f" The drawing leaves out {drawing['more']} more sites."
    return _section("network", sentence, power_of_two(visits.units).split(" ")[0], "sub-networks", how, drawing=drawing)


def division(unit: UnitOverMasks) -> Section:
    """One unit over masks."""
    sentence = (
        f"What is kept is divided by the chance to be kept, so that a unit's mean over masks, {unit.mean:.3f} ± "
        f"{1.96 * unit.standard_error:.3f} here, is its value with every unit active, {unit.one_pass:.3f}, and "
        f"eval mode needs no scaling. Behind a nonlinearity that ends: a ReLU's mean is {signed(unit.bias, 3)} off."
    )
    how = (
        f"The first row of the data under {len(unit.values):,} masks; unit {unit.unit} of {unit.path}, the first "
        f"module with weights behind a site, before its nonlinearity: the one of which most can be seen. Bias behind a "
        f"ReLU: {signed(unit.bias)} ± {unit.bias_error:.4f} (standard error); over all units of this module "
        f"{unit.rms_bias:.4f} (rms). ± in the sentence is half a 95 % interval."
    )
    return _section("division", sentence, signed(unit.bias, 3), "off behind a ReLU", how, unit.figure())


def reliance(found: Coadaptation, undropped: Coadaptation | None) -> Section:
    """Damage that was trained on, and damage that was not."""
    removed, largest = found.curves["random"], found.curves["largest"]
    at, top = removed.sizes.index(0.75), largest.sizes.index(0.05)
    is_class = found.task == "classification"

    def shown(score: float) -> str:
        return f"{score:.1%}" if is_class else f"{score:.4g}"

    what = "of rows right" if is_class else "mean squared error"
    how = (
        f"{found.rows} rows, {removed.tables.shape[1]} random orders. A network that was trained with units removed is "
        "robust to that by construction, so look at the right: there each row's largest activations are removed, "
        f"which no dropout does. Bars: 95 % over orders and rows. Interaction share of the masks' variance at p="
        f"{found.probe_rate:g}: {found.interaction:.2f} ± {found.interaction_error:.2f}; activations that are 0: "
        f"{found.sparsity:.0%}; mean |correlation| {found.correlation:.2f}, which hardly differs between networks with "
        "and without dropout."
    )
    if undropped is None:
        sentence = (
            f"With 75 % of its units removed at random the network is left with {shown(removed.score[at])} ({what}), "
            f"down from {shown(removed.score[0])}; with the 5 % largest activations removed, with "
            f"{shown(largest.score[top])}. Whether dropout made it so only a network trained without can tell."
            if is_class
            else f"With 75 % of its units removed at random the {what} goes from {shown(removed.score[0])} to "
            f"{shown(removed.score[at])}; with the 5 % largest activations removed, to {shown(largest.score[top])}."
        )
        figures = (found.figure("random"), found.figure("largest"))
        return _section("reliance", sentence, shown(removed.score[at]), f"{what}, 75 % removed", how, *figures)
    other, others = undropped.curves["random"], undropped.curves["largest"]
    tops = _claim(largest.minus(others)[top], is_class)
    sentence = (
        f"With 75 % of units removed at random: {shown(other.score[at])} without dropout, {shown(removed.score[at])} "
        f"with it ({what}). With each row's 5 % largest activations removed, which neither was trained on: "
        f"{shown(others.score[top])} and {shown(largest.score[top])}, {tops}."
    )
    how += (
        f" Without dropout: interaction {undropped.interaction:.2f} ± {undropped.interaction_error:.2f}, zeros "
        f"{undropped.sparsity:.0%}, |correlation| {undropped.correlation:.2f}. Both networks are damaged at the "
        "same places in the same orders. An accuracy-matched network with weight decay was not trained."
    )
    names = ("with dropout", "without dropout")
    figures = (found.figure("random", undropped, *names), found.figure("largest", undropped, *names))
    number = f"{shown(other.score[at])} → {shown(removed.score[at])}"
    return _section("reliance", sentence, number, f"{what}, 75 % removed", how, *figures)


def _claim(difference: Any, is_class: bool) -> str:
    factor, unit = (100, " points") if is_class else (1, "")
    low, high = (signed(factor * one, 1 if is_class else 4) for one in (difference.low, difference.high))
    if not difference.found:
        return f"no difference found [{low}, {high}{unit}]"
    return f"a difference of {signed(factor * difference.estimate, 1 if is_class else 4)}{unit} [{low}, {high}]"


def one_pass(gap: WeightScalingGap, found: Averages) -> Section:
    """One pass against the means, and its score against that of members."""
    is_class = gap.task == "classification"
    what = "probabilities" if is_class else "outputs"
    low, high = (signed(one) for one in found.difference[1:])
    says = f"{signed(found.difference[0])} [{low}, {high}]" if found.found else f"no difference found [{low}, {high}]"
    number = gap.to_arithmetic.value
    sentence = (
        f"Almost: its {what} are {number:.4f} (rms) from the sub-networks' mean. Averaging {found.numbers[-1]} members "
        f"changes the {found.name} from {found.one_pass:.4f} to {found.score[-1]:.4f}: {says}."
    )
    means = f"{gap.to_arithmetic} from the arithmetic mean"
    if gap.to_geometric is not None:
        means += (
            f", {gap.to_geometric} from the normalised geometric mean, which it is where logits are linear in masks"
        )
    alone = "; ".join(f"{path} alone {one}" for path, one in gap.sites.items())
    masks = "all" if gap.members > 10**6 else f"{gap.members}"
    how = f"{masks} masks of each row: one pass is {means} ({what}, rms ± standard error). "
    if alone:
        how += f"{'Before the softmax, by' if is_class else 'By'} the site that drops: {alone}. "
    if gap.leave_one_out is not None:
        aligned = gap.leave_one_out.alignment
        said = "" if math.isnan(aligned) else f" (alignment {aligned:.2f})"
        how += f"Leaving one unit out, exact to first order in p, says {gap.leave_one_out.size:.4f}{said}. "
    how += (
        "Left: members are one sub-network for all rows; the band holds 80 % of disjoint groups of so many. The "
        f"interval of the difference is over {found.rows} rows of this one network."
    )
    return _section("one-pass", sentence, f"{number:.4f}", f"rms between {what}", how, found.figure(), gap.figure())


def l2(found: Penalty, landing: tuple[Ridge, Descent] | None, shares: dict[str, float]) -> Section:
    """Measured against approximated penalty, and the linear model where the two are one."""
    sentence = (
        f"Up to a factor: dropout adds {found.measured:.4g} ± {1.96 * found.standard_error:.2g} to the loss, and the "
        f"quadratic (L2-like) form says {found.gauss_newton:.4g}: {found.ratio:.2f} of it."
    )
    if found.is_exact:
        sentence = (
            f"Exactly, here: dropout adds {found.measured:.4g} to the loss, and so says the quadratic form, because "
            "the loss is squared and the outputs are linear in the masks."
        )
    figures = [found.figure()]
    how = (
        f"Loss of {found.rows} rows under {found.members} masks a row less that of one pass ({found.loss:.4g}). The "
        f"quadratic form is Gauss-Newton's, by {found.probes} products with the transposed Jacobian; ratio "
        f"{found.ratio:.3f} ± {found.ratio_error:.2g} (standard error). ± in the sentence is half a 95 % interval. "
    )
    if shares:
        parts = ", ".join(f"{share:.2f} of it at {path}" for path, share in shares.items())
        how += (
            "Squared weights alone, each with its own strength, make up so much of the quadratic form (the rest is in "
            f"products of weights): {parts}. "
        )
    if landing is not None:
        solved, descent = landing
        sentence += (
            f" For a linear model it is L2 to the letter: SGD with dropout lands {descent.to_ridge[-1]:.1%} from the "
            f"ridge solution, {descent.to_plain[-1]:.0%} from least squares."
        )
        figures.append(descent.figure())
        how += (
            f"Right: a linear model of {len(solved.weights)} of the network's own units before its last site, trained "
            f"for {descent.steps[-1]:,} steps by SGD with real dropout of p={solved.p:g}, against the ridge solution "
            "in closed form, whose strength follows each unit's size."
        )
    return _section("l2", sentence, f"{found.ratio:.2f}", "approximation / truth", how, *figures)


def noise(found: GradientNoise) -> Section:
    """Masks beside the choice of rows."""
    ratio = found.masks / found.rows if found.rows > 0 else float("nan")
    sentence = (
        f"Masks give the gradient of a batch of {found.batch} rows {ratio:.2f} times the variance that the choice of "
        "its rows gives it."
    )
    how = (
        f"Variances summed over all parameters, from two sets of masks for the same rows: masks {found.masks:.3g} ± "
        f"{found.masks_error:.2g}, rows {found.rows:.3g} ± {found.rows_error:.2g} (standard errors over batches); "
        f"first order in the noise says {found.predicted:.3g}. Averaging k masks of a row divides the first by k; "
        f"sharing one among all rows makes it {found.grouped(1):.3g}."
    )
    return _section("noise", sentence, f"{ratio:.2f}", "variance from masks / from rows", how, found.figure())


def doubt(found: Averages) -> Section:
    """Risk by coverage."""
    factor, unit = (100, " %") if found.task == "classification" else (1, "")
    label = "error" if found.task == "classification" else "mean squared error"
    most = found.shares.index(0.9)
    parts = [
        f"from {factor * risk[-1]:.3g}{unit} to {factor * risk[most]:.3g}{unit} by {name}"
        for name, risk in found.risk.items()
    ]
    risk = list(found.risk.values())[-1]
    sentence = (
        f"Leaving the tenth of the rows that it is least sure of to somebody else takes the {label} {', '.join(parts)}."
    )
    area = ", ".join(f"{name} {factor * one:.3g}{unit}" for name, one in found.area.items())
    measure = "the entropy of the predicted classes" if found.task == "classification" else "the variance over members"
    how = (
        f"Unsure is measured by {measure}. Mean over all shares (area under the curve): {area}. Differences between "
        f"ways were not tested: {found.rows} rows of one network."
    )
    number = f"{factor * risk[most]:.3g}{unit}"
    return _section("doubt", sentence, number, f"{label} on the surest 90 %", how, found.risk_figure())


def batchnorm(found: VarianceShift) -> Section | None:
    """The variance shift; None where no dropout reaches a BatchNorm."""
    if not found.layers:
        return None
    worst = min(float(layer.measured.nanmean()) for layer in found.layers)
    sentence = (
        f"BatchNorm learned a variance under dropout that its input does not have at test time: behind dropout it is "
        f"{worst:.2f} of that in training, in the layer where it differs most."
    )
    figure = replace(found.figure(), alt=str(found))
    return _section("batchnorm", sentence, f"{worst:.2f}", "test / training variance", str(found), figure)


def why(price: Penalty | None, damage: Coadaptation | None, shaken: GradientNoise | None) -> Section:
    """What was seen of the three ways in which it can, with what each does not say."""
    parts = []
    if price is not None:
        parts.append(
            f"It puts a price of {price.measured:.3g} on this network, beside a loss of {price.loss:.3g}: paid for "
            f"answers that change when units are missing. L2 says {price.ratio:.2f} of that price."
        )
    if damage is not None:
        curve = damage.curves["random"]
        at = curve.sizes.index(0.75)
        percent = damage.task == "classification"
        score = f"{curve.score[at]:.0%} of rows right" if percent else f"a mean squared error of {curve.score[at]:.3g}"
        parts.append(
            f"To pay less, answers are spread over many units: with a quarter of them left there is still {score}."
        )
    if shaken is not None and shaken.rows > 0:
        parts.append(
            f"And it shakes every step, with {shaken.masks / shaken.rows:.1f} times the variance that the choice of "
            "rows has."
        )
    parts.append("Which of these made the difference on new rows, one trained network cannot tell.")
    return _section("why", " ".join(parts), "", "", "")
