"""`puredrop.explain`: the whole analysis as a call, its measures and their results as attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

from torch.nn import Module

from puredrop.explanation import analysis
from puredrop.explanation._inputs import as_targets, check_task
from puredrop.explanation._loss import as_classes
from puredrop.explanation.coadaptation import Coadaptation, Curve, coadaptation
from puredrop.explanation.gradient_noise import GradientNoise, gradient_noise
from puredrop.explanation.l2_strength import L2Strength, l2_strength
from puredrop.explanation.member_visits import MemberVisits, member_visits
from puredrop.explanation.penalty import Penalty, SitePenalty, penalty
from puredrop.explanation.ridge import Descent, Margins, Ridge, margins, ridge
from puredrop.explanation.subject import Subject
from puredrop.explanation.variance_shift import Shift, VarianceShift, variance_shift
from puredrop.explanation.weight_scaling_gap import Distance, LeaveOneOut, WeightScalingGap, weight_scaling_gap
from puredrop.members.inputs import checked_number

__all__ = ["Explainer"]


class Explainer:
    """The type of `puredrop.explain`: a call is the whole analysis, and each measure is an attribute.

    | question | measure | result |
    |---|---|---|
    | what does dropout add to the loss? | `penalty` | `Penalty` |
    | is that L2? | `ridge`, `margins`, `l2_strength` | `Ridge`, `Margins`, `L2Strength` |
    | do units rely on each other? | `coadaptation` | `Coadaptation` |
    | does one pass stand for the sub-networks? | `weight_scaling_gap` | `WeightScalingGap` |
    | does it disturb BatchNorm? | `variance_shift` | `VarianceShift` |
    | how noisy is the gradient? | `gradient_noise` | `GradientNoise` |
    | which sub-networks does training visit? | `member_visits` | `MemberVisits` |

    The model is unchanged when a call returns; every result prints itself, and most draw themselves by `figure()`.

    >>> import torch
    >>> from puredrop import explain
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(9, 3))
    >>> found = explain.weight_scaling_gap(net, torch.randn(20, 4))
    >>> isinstance(found, explain.WeightScalingGap)
    True
    """

    Coadaptation, Curve = Coadaptation, Curve
    Descent, Margins, Ridge = Descent, Margins, Ridge
    Distance, LeaveOneOut, WeightScalingGap = Distance, LeaveOneOut, WeightScalingGap
    Explanation = analysis.Explanation
    GradientNoise = GradientNoise
    L2Strength = L2Strength
    MemberVisits = MemberVisits
    Penalty, SitePenalty = Penalty, SitePenalty
    Shift, VarianceShift = Shift, VarianceShift

    coadaptation = staticmethod(coadaptation)
    gradient_noise = staticmethod(gradient_noise)
    l2_strength = staticmethod(l2_strength)
    margins = staticmethod(margins)
    member_visits = staticmethod(member_visits)
    penalty = staticmethod(penalty)
    ridge = staticmethod(ridge)
    variance_shift = staticmethod(variance_shift)
    weight_scaling_gap = staticmethod(weight_scaling_gap)

    def __repr__(self) -> str:
        return "puredrop.explain"

    def __call__(
        self,
        model: Module,
        x: Any,
        y: Any = None,
        *,
        task: Literal["classification", "regression"] | None = None,
        undropped: Module | None = None,
        train_x: Any = None,
        train_y: Any = None,
        class_dim: int | None = None,
        name: str = "",
        rows: int = 1024,
        draws: int = 60_000,
        members: int = 64,
        seed: int = 0,
        exclude: Collection[str] = (),
        on_question: Callable[[str], None] = lambda heading: None,
    ) -> analysis.Explanation:
        """Analyse what dropout did to a trained model, with the questions, numbers and page of `puredrop explain`.

        Use it to learn everything at once; a small network takes some ten seconds. Use one of the measures, such as
        `puredrop.explain.penalty`, for one question with its own options.

        Args:
            model: trained; the rates of its dropout above 0.
            x: rows that it was not trained on, (rows, ...), two at least: a tensor, an array, a table, or a mapping or
                tuple of them; with y left out, a batch (x, y) or a DataLoader of such batches.
            y: classes from 0, or numbers of a regression, (rows, ...).
            task: "classification" or "regression"; by default regression for floating-point y.
            undropped: the same network trained without dropout, with dropout layers of rate 0 at the same places.
                Without it nothing shows whether dropout made the network robust.
            train_x, train_y: rows that it was trained on, for the penalty, the gradient and BatchNorm; by default x
                and y. train_y is left out as y is.
            class_dim: dimension of the classes in the outputs: -1 for (rows, time, classes). By default found from y.
            name: for the page's heading; by default the model's class.
            rows: at most so many rows are used, drawn at random.
            draws: masks to count: epochs times rows of the training.
            members: number of masks, members and orders that are run; more is more exact and slower.
            seed: of all masks, and of the choice of rows.
            exclude: ids of sections that are not measured, such as ("noise", "uncertainty").
            on_question: called with the heading of each section before it is measured, to show progress.

        Returns:
            The analysis: it prints, `to_dict()` holds every number, `save("explain.html")` writes the page.

        Raises:
            TypeError, ValueError: for fewer than two rows, classes that the model does not have, or a model of which
                no dropout is reached.

        >>> import torch
        >>> from puredrop import explain
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(9, 3))
        >>> found = explain(net, torch.randn(40, 4), torch.randint(3, (40,)), members=16, exclude=("noise",))
        >>> [section.id for section in found.sections]
        ['network', 'division', 'reliance', 'one-pass', 'l2', 'uncertainty', 'why']
        """
        x, y = as_targets(x, y)
        if train_x is not None:
            train_x, train_y = as_targets(train_x, train_y)
        if task is None:
            task = "regression" if y.is_floating_point() else "classification"
        check_task(task)
        if task == "classification":
            y, train_y = as_classes(y), None if train_y is None else as_classes(train_y, "train_y")
        subject = Subject(
            name or type(model).__name__, model, x, y, task, train_x, train_y, undropped, draws, None,
            checked_number("members", members, 16), seed, class_dim,
        )  # fmt: skip
        return analysis.analyse(subject.fewer(checked_number("rows", rows, 2)), on_question, exclude)
