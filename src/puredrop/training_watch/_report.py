"""Findings of a watched training, and their report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records
from puredrop._text import counted
from puredrop.linting import CODES

__all__ = ["WatchFinding", "WatchReport", "WatchWarning"]


class WatchWarning(UserWarning):
    """Warning of a watched training: dropout is off in a training step, or on in an evaluation.

    Use it to filter these warnings, for instance to make them errors: `warnings.simplefilter("error", WatchWarning)`.
    """


@dataclass(frozen=True)
class WatchFinding:
    """A mistake in a training loop, as it was met first.

    Args:
        code: "PD601" (dropout is off in a training step) or "PD602" (dropout is on in an evaluation).
        place: path of the outermost module whose mode is wrong, "" for the model itself.
        step: number of optimizer steps taken before.
        sites: number of dropout sites that the mistake concerns.
        detail: facts about the place: the flag, or the rate that fell to 0.
        rank: rank of the process, None where there is only one.
        times: number of training steps, or of forwards in evaluations, in which the mistake was met so far.

    >>> print(WatchFinding("PD601", "encoder", step=12, sites=4, detail="training=False"))
    encoder: error PD601: dropout is off in a training step: step 12, 4 sites, training=False
        why: the model trains without the dropout that its configuration states
        fix: call model.train() before the step; after an evaluation or a callback the mode is still that of evaluation
    """

    code: str
    place: str
    step: int
    sites: int
    detail: str = ""
    rank: int | None = None
    times: int = 1

    @property
    def severity(self) -> str:
        """Severity of the finding's code."""
        return CODES[self.code].severity

    @property
    def message(self) -> str:
        """The code's title with step, rank, number of sites and detail, in one line."""
        rank = "" if self.rank is None else f"rank {self.rank}"
        facts = (f"step {self.step}", rank, counted(self.sites, "site"), self.detail)
        return f"{CODES[self.code].title}: {', '.join(filter(None, facts))}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the finding, with severity, message, reason and fix."""
        code = CODES[self.code]
        return {**asdict(self), "severity": code.severity, "message": self.message, "why": code.why, "fix": code.fix}

    def __str__(self) -> str:
        code = CODES[self.code]
        place = self.place or "(model)"
        return f"{place}: {self.severity} {self.code}: {self.message}\n    why: {code.why}\n    fix: {code.fix}"


@dataclass(frozen=True, repr=False)
class WatchReport(Records):
    """Mistakes that a watch met so far: iterable, printable, and readable by other programs.

    Args:
        findings: the first mistake of each kind.
        sites: number of dropout sites that are watched and whose rate is above 0.
        steps: number of optimizer steps.
        training_forwards: number of forwards with gradients.
        evaluation_forwards: number of forwards without gradients, or in an evaluation.

    >>> print(WatchReport((), sites=2, steps=10, training_forwards=20, evaluation_forwards=5))
    no findings (2 sites, 10 steps, 20 training forwards, 5 evaluation forwards)
    """

    findings: tuple[WatchFinding, ...]
    sites: int
    steps: int
    training_forwards: int
    evaluation_forwards: int

    @property
    def ok(self) -> bool:
        """True if there are no findings, and there is dropout to watch."""
        return not self.findings and self.sites > 0

    def _counts(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def to_dict(self) -> dict[str, Any]:
        """Return whether the training was right so far, how much was watched, and the findings."""
        return {"ok": self.ok, **self._counts(), "findings": self.records()}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the fields of each finding, with severity, message, reason and fix."""
        rows = [finding.to_dict() for finding in self.findings]
        names = [*(field.name for field in fields(WatchFinding)), "severity", "message", "why", "fix"]
        return {name: [row[name] for row in rows] for name in names}

    def __iter__(self) -> Iterator[WatchFinding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        nouns = ((name.removesuffix("s").replace("_", " "), number) for name, number in self._counts().items())
        counts = ", ".join(counted(number, noun) for noun, number in nouns)
        if not self.findings:
            return f"no findings ({counts})" if self.sites else f"nothing is watched: no dropout found ({counts})"
        return "\n".join([*map(str, self.findings), f"{counted(len(self.findings), 'finding')} ({counts})"])
