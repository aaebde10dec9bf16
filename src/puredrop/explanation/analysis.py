"""Everything that the page says of one network: all questions measured, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from puredrop.explanation import _sections as sections
from puredrop.explanation.averages import Averages, averages
from puredrop.explanation.coadaptation import Coadaptation, coadaptation
from puredrop.explanation.drawing import drawing
from puredrop.explanation.gradient_noise import GradientNoise, gradient_noise
from puredrop.explanation.l2_strength import l2_strength
from puredrop.explanation.member_visits import member_visits
from puredrop.explanation.penalty import Penalty, penalty
from puredrop.explanation.ridge import Descent, Ridge, ridge
from puredrop.explanation.unit_over_masks import unit_over_masks
from puredrop.explanation.variance_shift import variance_shift
from puredrop.explanation.weight_scaling_gap import weight_scaling_gap
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.prepared import PreparedModel, keep_all, prepare
from puredrop.members.sites import SiteUse
from puredrop.report.environment import environment
from puredrop.report.section import Claim, Section, unable

__all__ = ["Explanation", "Subject", "analyse"]

_RIDGE_UNITS, _RIDGE_STEPS = 64, 8000
_LARGEST_BATCH = 128
_MOST_SITES = 12
"""That are measured alone, too: of a deep encoder each would take as long as all of them together."""
_NEAR = 0.1
"""By how much the approximated penalty may miss the truth, as a share of it, to be called the same."""
_DAMAGE = {
    "random": ("units removed at random", 0.75),
    "largest": ("the largest activations removed", 0.05),
    "noise": ("noise of the activations' size", 1.0),
}
"""Kind -> what the closing paragraph calls it, and the size at which it compares."""


@dataclass(frozen=True)
class Subject:
    """A trained network and its data.

    Args:
        name: for headings.
        model: trained; its rates above 0.
        x, y: rows that it was not trained on, if there are any.
        task: what it predicts: classes of cross entropy, or numbers of a squared error.
        train_x, train_y: rows that it was trained on, for what dropout adds to their loss; the same rows if None.
        undropped: the same network trained without dropout, with layers that drop at the same places.
        draws: masks to count, as many as a training draws: epochs times rows.
        masks: a function to those of its own training, as `member_visits` takes them; None to draw some.
        members: how many masks, members and orders are run; more is more exact.
        seed: of all of them.
    """

    name: str
    model: Module
    x: Any
    y: Tensor
    task: Literal["classification", "regression"]
    train_x: Any = None
    train_y: Tensor | None = None
    undropped: Module | None = None
    draws: int = 60_000
    masks: Callable[[], Iterable[Mapping[str, Tensor]]] | None = None
    members: int = 64
    seed: int = 0

    @property
    def trained(self) -> tuple[Any, Tensor]:
        """Rows that it was trained on."""
        return (self.x, self.y) if self.train_y is None else (self.train_x, self.train_y)

    def fewer(self, rows: int) -> Subject:
        """The same with so many of its rows at random, where there are more."""
        generator = torch.Generator().manual_seed(self.seed)
        x, y = _some(self.x, self.y, rows, generator)
        if self.train_y is None:
            return replace(self, x=x, y=y)
        train_x, train_y = _some(self.train_x, self.train_y, rows, generator)
        return replace(self, x=x, y=y, train_x=train_x, train_y=train_y)


def _some(x: Any, y: Tensor, rows: int, generator: torch.Generator) -> tuple[Any, Tensor]:
    if len(y) <= rows:
        return x, y
    which = torch.randperm(len(y), generator=generator)[:rows].sort().values.to(y.device)
    return ({name: one[which] for name, one in x.items()} if isinstance(x, dict) else x[which]), y[which]


@dataclass(frozen=True)
class Explanation:
    """The analysis of one network: what `puredrop.explain(model, x, y)` returns.

    It prints its verdict and what held of the three usual explanations of dropout. `to_dict` gives every sentence,
    number and figure; `save` writes the page.

    Args:
        verdict: the network in one sentence.
        findings: the three usual explanations of dropout, each with whether it held here.
        sections: one for each question, in the order of the page.
        skipped: path of a module or call that drops and was not analysed -> the reason.
        name: of the network, for the page's heading.
    """

    verdict: str
    findings: tuple[Claim, ...]
    sections: tuple[Section, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        held = (f"{'held' if one.held else 'did not hold'}: {one.text}" for one in self.findings)
        return "\n".join([self.verdict, *held, *(f"skipped: {path}: {why}" for path, why in self.skipped.items())])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it: verdict, findings, sections with their figures, and what was skipped."""
        return {
            "verdict": self.verdict, "findings": [asdict(one) for one in self.findings], "skipped": self.skipped,
            "sections": [section.to_dict() for section in self.sections],
        }  # fmt: skip

    def save(self, path: str | Path, *, facts: Sequence[str] = (), command: str = "") -> None:
        """Write the page: one HTML file that needs no network. Needs the extra `study`.

        Args:
            path: the file, such as "explain.html"; one that exists is replaced.
            facts: short texts about the data, for the page's head.
            command: the shell command that makes this page again, if there is one.
        """
        from puredrop.report.page import rendered  # jinja2 and plotly, of the extra

        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        page = rendered(
            "explanation.html.j2", ("puredrop.explanation",), name=self.name, facts=facts, explanation=self,
            command=command, environment={**environment(), "created": created},
        )  # fmt: skip
        Path(path).write_text(page)


def analyse(
    subject: Subject, on_question: Callable[[str], None] = lambda question: None, exclude: Collection[str] = ()
) -> Explanation:
    """Ask a network everything.

    Args:
        subject: it and its data.
        on_question: called with each question before it is measured.
        but: ids of questions that are not asked.

    Raises:
        TypeError, ValueError: for fewer than two rows, classes that the model does not have, or no dropout reached.
    """
    prepared = prepare(subject.model, subject.x, seed=subject.seed)
    asked = _Asked(subject, prepared)
    told: list[Section] = []
    for id, ask in asked.questions():
        if id in exclude:
            continue
        question = sections.QUESTIONS[id]
        on_question(question)
        try:
            section = ask()
        except (ValueError, NotImplementedError) as error:
            section = unable(id, question, error)
        if section is not None:
            told.append(section)
    return Explanation(asked.verdict(), tuple(asked.findings()), tuple(told), prepared.skipped, subject.name)


class _Asked:
    """The questions of one subject, and what their answers have in common."""

    def __init__(self, subject: Subject, prepared: PreparedModel) -> None:
        self.subject, self.prepared = subject, prepared
        self.loss = F.cross_entropy if subject.task == "classification" else F.mse_loss
        self.per_site = len(prepared.uses) <= _MOST_SITES
        self.with_rows: dict[str, Any] = {"members": subject.members, "seed": subject.seed}
        with prepared.instrument() as instrumented:
            self.means = averages(
                prepared,
                instrumented,
                prepared.with_targets(self._fitting(instrumented)),
                subject.task,
                subject.members,
            )
        self.penalty: Penalty | None = None
        self.damage: tuple[Coadaptation, Coadaptation | None] | None = None
        self.shaken: GradientNoise | None = None
        self.gap: float | None = None

    def _fitting(self, instrumented: InstrumentedModel) -> Tensor:
        """What belongs to the rows, in the shape of the outputs of a regression."""
        return _like(
            self.subject.y, self.prepared.forward(instrumented, self.prepared.batches[0], keep_all), self.subject.task
        )

    def questions(self) -> Iterator[tuple[str, Callable[[], Section | None]]]:
        """In the order of the page."""
        yield "network", self.network
        yield "division", self.division
        yield "reliance", self.reliance
        yield "one-pass", self.one_pass
        yield "l2", self.l2
        yield "noise", self.noise
        yield "doubt", lambda: sections.doubt(self.means)
        if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in self.prepared.root.modules()):
            yield "batchnorm", self.batchnorm
        yield "why", lambda: sections.why(self.penalty, self.damage[0] if self.damage else None, self.shaken)

    def network(self) -> Section:
        """A drawing, and the masks drawn."""
        s = self.subject
        own = None if s.masks is None else s.masks()
        found = member_visits(s.model, s.x, task=s.task, draws=s.draws, masks=own, members=32, seed=s.seed)
        with self.prepared.instrument() as instrumented:
            outputs = self.prepared.forward(instrumented, self.prepared.batches[0], keep_all)[0].numel()
        return sections.network(found, drawing(self.prepared, outputs), own is not None)

    def division(self) -> Section:
        """One unit over masks."""
        with self.prepared.instrument() as instrumented:
            return sections.division(unit_over_masks(self.prepared, instrumented))

    def reliance(self) -> Section:
        """Damage, with and without dropout."""
        s = self.subject
        orders = max(2, s.members // 4)
        options: dict[str, Any] = {"task": s.task, "orders": orders, "members": 4 * s.members, "seed": s.seed}
        found = coadaptation(s.model, s.x, s.y, **options)
        undropped = None if s.undropped is None else coadaptation(s.undropped, s.x, s.y, **options)
        self.damage = (found, undropped)
        return sections.reliance(found, undropped)

    def one_pass(self) -> Section:
        """Against the means for which it stands."""
        s = self.subject
        members = 8 * max(1, s.members // 2)
        found = weight_scaling_gap(s.model, s.x, task=s.task, members=members, per_site=self.per_site, seed=s.seed)
        self.gap = found.to_arithmetic.value
        return sections.one_pass(found, self.means)

    def l2(self) -> Section:
        """The price in the loss, by both."""
        x, y = self.subject.trained
        y = self._targets(y)
        self.penalty = penalty(self.subject.model, x, y, self.loss, per_site=self.per_site, **self.with_rows)
        try:
            shares = l2_strength(self.subject.model, x, y, self.loss, seed=self.subject.seed).shares
        except ValueError:  # nothing that follows a site has weights that are looked at
            shares = {}
        return sections.l2(self.penalty, self._landing(), shares)

    def _targets(self, y: Tensor) -> Tensor:
        with self.prepared.instrument() as instrumented:
            return _like(y, self.prepared.forward(instrumented, self.prepared.batches[0], keep_all), self.subject.task)

    def _landing(self) -> tuple[Ridge, Descent] | None:
        """Of a linear model of some of the units before the last site; None where they are no features of rows."""
        last, seen = self.prepared.uses[-1], []

        def intervention(use: SiteUse, input: Tensor, dim: int | None) -> Tensor:
            if use.place == last.place and dim == 0 and input.dim() == 2:
                seen.append(input.detach().double().cpu())
            return input

        with self.prepared.instrument() as instrumented:
            for batch in self.prepared.batches:
                self.prepared.forward(instrumented, batch, intervention)
        if not seen or self.subject.y.dim() > 1:
            return None
        h = torch.cat(seen)
        size = h.square().mean(0).sqrt()
        which = size.topk(min(_RIDGE_UNITS, int((size > 0).sum()), len(h) // 4)).indices
        if not len(which):
            return None
        y = self.subject.y.cpu()
        targets = F.one_hot(y).double() if self.subject.task == "classification" else y.double()
        try:
            solved = ridge(h[:, which] / size[which], targets, last.p)
        except ValueError:  # units that others say already
            return None
        return solved, solved.descend(_RIDGE_STEPS, seed=self.subject.seed)

    def noise(self) -> Section:
        """Of the gradient."""
        x, y = self.subject.trained
        batch = min(_LARGEST_BATCH, len(y) // 2)
        y = self._targets(y)
        self.shaken = gradient_noise(self.subject.model, x, y, self.loss, batch=batch, seed=self.subject.seed)
        return sections.noise(self.shaken)

    def batchnorm(self) -> Section | None:
        """Its variances."""
        x, _ = self.subject.trained
        return sections.batchnorm(variance_shift(self.subject.model, x, seed=self.subject.seed))

    def verdict(self) -> str:
        """The network in one sentence."""
        adds = "Dropout could not be priced in the loss of this network"
        if self.penalty is not None:
            found = self.penalty
            adds = f"Dropout adds {found.measured:.3g} to a training loss of {found.loss:.3g} of this network"
        means = self.means
        number, unit = means.numbers[-1], means.name
        if means.found:
            verb = "lowers" if means.difference[0] < 0 else "raises"
            return (
                f"{adds}, and averaging {number} of its sub-networks {verb} the {unit} of one pass from "
                f"{means.one_pass:.4f} to {means.score[-1]:.4f}."
            )
        return f"{adds}, and averaging {number} of its sub-networks makes no difference to the {unit} we could find."

    def findings(self) -> Iterator[Claim]:
        """What held of the three sentences, and what did not."""
        if self.damage is not None:
            yield from _of_reliance(*self.damage)
        if self.gap is not None:
            yield _of_means(self.means, self.gap)
        if self.penalty is not None:
            ratio, error = self.penalty.ratio, self.penalty.ratio_error
            is_near = self.penalty.is_exact or abs(ratio - 1) < _NEAR
            says = f"the L2-like form says {ratio:.2f} ± {1.96 * error:.2f} of what dropout adds to the loss"
            yield Claim("l2", is_near, f"“it acts like L2”: {says}")


def _like(y: Tensor, outputs: Tensor, task: str) -> Tensor:
    if task == "regression" and y.numel() == len(y) * outputs[0].numel():
        return y.reshape(len(y), *outputs.shape[1:]).to(outputs.dtype)
    return y


def _of_reliance(found: Coadaptation, undropped: Coadaptation | None) -> Iterator[Claim]:
    name = "“units cannot rely on each other”"
    if undropped is None:
        yield Claim("reliance", False, f"{name}: not to be told without a network that was trained without dropout")
        return
    sign = 1 if found.task == "classification" else -1
    words: dict[bool, list[str]] = {True: [], False: []}
    for kind, (what, size) in _DAMAGE.items():
        curve = found.curves[kind]
        difference = curve.minus(undropped.curves[kind])[curve.sizes.index(size)]
        words[difference.found and sign * difference.estimate > 0].append(what)
    for is_better, kinds in words.items():
        if kinds:
            verb = "better" if is_better else "not shown to be better"
            yield Claim("reliance", is_better, f"{name}: {verb} than the undropped model under {_and(kinds)}")


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _of_means(means: Averages, gap: float) -> Claim:
    name, away = "“one pass averages 2^n networks”", f"it is {gap:.4f} (rms) from their mean"
    if not means.found:
        number = means.numbers[-1]
        return Claim("one-pass", True, f"{name}: {away}, and no worse or better than that of {number}, as far as seen")
    verb = "worse" if means.difference[0] < 0 else "better"
    return Claim(
        "one-pass", False, f"{name}: {away}, and {verb} than it by {abs(means.difference[0]):.4f} ({means.name})"
    )
