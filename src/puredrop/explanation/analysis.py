"""The whole analysis of one network: every question, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from puredrop._files import write_page
from puredrop._records import Records
from puredrop.explanation import (
    averages,
    coadaptation,
    conclusion,
    gradient_noise,
    member_visits,
    penalty,
    unit_over_masks,
    variance_shift,
    weight_scaling_gap,
)
from puredrop.explanation._result import plain
from puredrop.explanation.subject import Case, Question, Subject
from puredrop.report.environment import environment, machine_memory
from puredrop.report.section import Claim, Section, unable

__all__ = ["QUESTIONS", "Explanation", "Subject", "analyse"]

QUESTIONS: tuple[tuple[Question, Callable[[Case], Section | None]], ...] = (
    (member_visits.QUESTION, member_visits.section),
    (unit_over_masks.QUESTION, unit_over_masks.section),
    (coadaptation.QUESTION, coadaptation.section),
    (weight_scaling_gap.QUESTION, weight_scaling_gap.section),
    (penalty.QUESTION, penalty.section),
    (gradient_noise.QUESTION, gradient_noise.section),
    (averages.QUESTION, averages.section),
    (variance_shift.QUESTION, variance_shift.section),
    (conclusion.QUESTION, conclusion.section),
)
"""Each question and the function that answers it, in the order of the page; the last uses the results of the others."""

_BYTES = 120  # of memory at the peak for each number of the members' outputs, measured


@dataclass(frozen=True, repr=False)
class Explanation(Records):
    """The analysis of one network: what `puredrop.explain(model, x, y)` returns.

    It prints its verdict and what held of the three usual explanations of dropout. `to_dict` and `to_json` give every
    sentence, number and figure, `frame` the answers as a table; `save` writes the page.

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
        held = (f"{'held' if claim.held else 'did not hold'}: {claim.text}" for claim in self.findings)
        return "\n".join([self.verdict, *held, *(f"skipped: {path}: {why}" for path, why in self.skipped.items())])

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, findings, sections with their figures, and what was skipped; None stands for NaN."""
        record: dict[str, Any] = plain({
            "verdict": self.verdict, "findings": [asdict(claim) for claim in self.findings], "skipped": self.skipped,
            "sections": [section.to_dict() for section in self.sections],
        })  # fmt: skip
        return record

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the question and the answer of each section."""
        names = ("id", "question", "sentence", "number", "label")
        return {name: [getattr(section, name) for section in self.sections] for name in names}

    def save(self, path: str | Path, *, facts: Sequence[str] = (), command: str = "") -> None:
        """Write the page: one HTML file that needs no network. Needs the extra `study`.

        Args:
            path: the file, such as "explain.html"; one that exists is replaced.
            facts: short texts about the data, for the page's head.
            command: the shell command that makes this page again, if there is one.
        """
        from puredrop.report.page import render_template  # jinja2 and plotly, of the extra

        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        page = render_template(
            "explanation.html.j2", ("puredrop.explanation",), name=self.name, facts=facts, explanation=self,
            command=command, environment={**environment(), "created": created},
        )  # fmt: skip
        write_page(Path(path), page)


def analyse(
    subject: Subject, on_question: Callable[[str], None] = lambda heading: None, exclude: Collection[str] = ()
) -> Explanation:
    """Answer every question about a network.

    Args:
        subject: the network and its data.
        on_question: called with each heading before its question is measured.
        exclude: ids of questions that are left out.

    Raises:
        TypeError, ValueError: for fewer than two rows, classes that the model does not have, or no dropout reached,
            or more rows, members and outputs than the machine's memory takes.
    """
    case = Case(subject)
    _check_memory(case)
    pairs = case.prepared.with_targets(case.y)
    case.results["averages"] = averages.measure(case.prepared, pairs, subject.task, subject.members)
    sections = []
    for question, answer in QUESTIONS:
        if question.id in exclude or not question.applies(case.prepared.root):
            continue
        on_question(question.text)
        try:
            section = answer(case)
        except (ValueError, NotImplementedError) as error:
            section = unable(question.id, question.text, error)
        if section is not None:
            sections.append(section)
    findings = tuple(conclusion.claims(case))
    return Explanation(conclusion.verdict(case), findings, tuple(sections), case.prepared.skipped, subject.name)


def _check_memory(case: Case) -> None:
    rows, members, outputs = len(case.subject.y), case.subject.members, case.outputs[0].numel()
    needed, there = _BYTES * rows * members * outputs, machine_memory()
    if there is not None and needed > there and case.outputs.device.type == "cpu":
        raise ValueError(
            f"rows is {rows} and members is {members}: with {outputs} outputs of a row they need "
            f"{needed / 1e9:.1f} GB, and this machine has {there / 1e9:.1f}; expected fewer rows or members"
        )
