"""Codes of mistakes, findings that carry them, and the report of a check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records

__all__ = ["CODES", "Code", "Finding", "Report"]


@dataclass(frozen=True)
class Code:
    """A kind of mistake.

    Args:
        severity: "error" (results are wrong), "warning" (probably unintended) or "note".
        title: description of the mistake in a few words.
        why: reason why the mistake matters.
        fix: change that mends it.
    """

    severity: str
    title: str
    why: str
    fix: str


CODES = {
    "PD101": Code(
        "error",
        "functional dropout is always on",
        "F.dropout acts unless it is told training=False, so model.eval() does not switch it off",
        "pass training=self.training, or use an nn.Dropout layer",
    ),
    "PD102": Code(
        "error",
        "attention dropout is always on",
        "scaled_dot_product_attention drops whatever the mode: model.eval() does not switch it off",
        "pass dropout_p=self.p if self.training else 0.0",
    ),
    "PD103": Code(
        "warning",
        "random numbers are drawn in eval mode",
        "predictions then differ from call to call",
        "draw only where self.training is true",
    ),
    "PD104": Code(
        "error",
        "a module stays in training mode after model.eval()",
        "its dropout goes on at inference; a train() of the module's own is the usual reason",
        "let train(mode) call super().train(mode)",
    ),
    "PD105": Code(
        "error",
        "dropout is created in forward",
        "a new layer is in training mode, so model.eval() does not switch it off",
        "create it in __init__, or call F.dropout(x, p, self.training)",
    ),
    "PD201": Code(
        "warning",
        "a dropout is held and never called",
        "its rate has no effect, whatever the configuration says",
        "call it in forward, or remove it",
    ),
    "PD301": Code(
        "note",
        "every rate is 0",
        "the model has dropout layers and drops nothing",
        "set a rate, or remove the layers",
    ),
    "PD302": Code(
        "error", "the rate is 1", "everything is dropped", "p is the share that is dropped, not what is kept"
    ),
    "PD303": Code(
        "warning",
        "the rate is 0.9 or more",
        "hardly anything is left to learn from; often the share to keep was meant",
        "p is the share that is dropped: keep_prob 0.9 is p=0.1",
    ),
    "PD401": Code(
        "warning",
        "dropout straight before BatchNorm",
        "the running variance is that of dropped activations, larger than at inference (Li et al., CVPR 2019)",
        "put the dropout after the last BatchNorm, or before the layer that BatchNorm follows",
    ),
    "PD402": Code(
        "warning",
        "dropout after the last layer",
        "outputs themselves are zeroed and scaled in training, and the loss sees that",
        "put the dropout before the last layer",
    ),
    "PD403": Code(
        "note",
        "dropout straight before a regression output",
        "the variance it adds to a single output does not average out in a squared loss",
        "compare with and without it: puredrop compare",
    ),
    "PD404": Code(
        "note",
        "elementwise dropout on a convolution's maps",
        "neighbouring elements carry the same information, so little is dropped",
        "drop whole channels: nn.Dropout2d, or DropBlock2d",
    ),
    "PD405": Code(
        "warning",
        "one mask is used twice in a forward",
        "what is dropped twice is scaled twice, and the expectation is no longer the input",
        "use two layers, or two keys",
    ),
    "PD501": Code(
        "warning",
        "recurrent dropout with one layer",
        "torch drops between layers, and there is nothing between one",
        "use two or more layers, or a Dropout layer after it",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One mistake at one place.

    Args:
        code: key of the mistake in `CODES`, such as "PD101".
        place: path of the site in the model, or name of the file.
        detail: facts about this place, such as the rate; "" where there are none.
        line, column: position in the file, counted from 1; 0 for a finding in a model.
        file: name of the file, "" for a finding in a model.

    >>> Finding("PD302", "encoder.drop").severity
    'error'
    """

    code: str
    place: str
    detail: str = ""
    line: int = 0
    column: int = 0
    file: str = ""

    @property
    def severity(self) -> str:
        """Severity of the finding's code: "error", "warning" or "note"."""
        return CODES[self.code].severity

    @property
    def message(self) -> str:
        """The code's title and the detail, in one line."""
        return CODES[self.code].title + (f": {self.detail}" if self.detail else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the finding, with severity, message, reason and fix."""
        code = CODES[self.code]
        return {**asdict(self), "severity": code.severity, "message": self.message, "why": code.why, "fix": code.fix}

    def __str__(self) -> str:
        code = CODES[self.code]
        at = f"{self.file}:{self.line}:{self.column}" if self.file else self.place or "(model)"
        return f"{at}: {self.severity} {self.code}: {self.message}\n    why: {code.why}\n    fix: {code.fix}"


@dataclass(frozen=True, repr=False)
class Report(Records):
    """Findings of a check: iterable, printable, and readable by other programs.

    Args:
        findings: in the order of their places.
        checked: number of sites, or files, that were checked.

    >>> report = Report((Finding("PD302", "drop"),), checked=3)
    >>> report.ok, len(report), [finding.code for finding in report]
    (False, 1, ['PD302'])
    """

    findings: tuple[Finding, ...]
    checked: int = 0

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return whether the check passed, how much was checked, and the findings."""
        return {"ok": self.ok, "checked": self.checked, "findings": self.records()}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the fields of each finding, with severity, message, reason and fix."""
        rows = [finding.to_dict() for finding in self.findings]
        names = [*(field.name for field in fields(Finding)), "severity", "message", "why", "fix"]
        return {name: [row[name] for row in rows] for name in names}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        if self.ok:
            return f"no findings ({self.checked} checked)"
        count = len(self.findings)
        return "\n".join([*map(str, self.findings), f"{count} finding{'s' * (count > 1)}"])
