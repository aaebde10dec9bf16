"""Sections of a page: a question, the answer in a sentence and a number, figures, and how it was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from puredrop.report.figures import Figure

__all__ = ["Claim", "Section", "signed", "unable"]


@dataclass(frozen=True)
class Claim:
    """One of the usual explanations of dropout, and whether it held here.

    Args:
        id: of the section that it comes from.
        held: whether it held.
        text: the explanation, and what was measured.
    """

    id: str
    held: bool
    text: str


@dataclass(frozen=True)
class Section:
    """The answer of a page to one question.

    Args:
        id: the section's name in the page's address.
        question: its heading.
        sentence: the answer.
        number: the number that says it, with its unit; empty where there is none.
        label: what the number is.
        figures: with their text alternatives.
        how: how it was measured.
        drawing: of the network: columns of units, and the masks of some members.
    """

    id: str
    question: str
    sentence: str
    number: str = ""
    label: str = ""
    figures: tuple[Figure, ...] = ()
    how: str = ""
    drawing: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the section as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Section:
        """Make a section from what `to_dict` returned."""
        return Section(**{**record, "figures": tuple(Figure(**figure) for figure in record["figures"])})


def unable(id: str, question: str, error: Exception) -> Section:
    """Return the section of a question that cannot be answered for a model: it gives the reason."""
    return Section(id, question, f"Not measured on this model: {' '.join(str(error).split())}.")


def signed(value: float, digits: int = 4) -> str:
    """Return a number with its sign, for a sentence."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
