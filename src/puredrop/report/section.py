"""A part of the page: one question, one sentence, one number, its pictures, and how it was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from puredrop.report.figures import Figure

__all__ = ["Claim", "Section", "signed", "unable"]


@dataclass(frozen=True)
class Claim:
    """What was seen of one of the sentences that explain dropout everywhere.

    Args:
        id: of the part of the page that it comes from.
        held: whether the sentence held.
        text: the sentence, and what was seen.
    """

    id: str
    held: bool
    text: str


@dataclass(frozen=True)
class Section:
    """What the page says to one question.

    Args:
        id: of the part, in its address.
        question: its heading.
        sentence: the answer.
        number: the one that says it, with its unit; empty where there is none.
        label: what the number is.
        figures: with their text alternatives.
        how: how it was measured.
        drawing: of the network, as `drawing` gives it.
    """

    id: str
    question: str
    sentence: str
    number: str = ""
    label: str = ""
    figures: tuple[Figure, ...] = ()
    how: str = ""
    drawing: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def restored(record: dict[str, Any]) -> Section:
        """The inverse of `record`."""
        return Section(**{**record, "figures": tuple(Figure(**one) for one in record["figures"])})


def unable(id: str, question: str, error: Exception) -> Section:
    """The part of what cannot be measured on a model, which says why."""
    return Section(id, question, f"Not measured on this model: {' '.join(str(error).split())}.")


def signed(value: float, digits: int = 4) -> str:
    """A number with its sign, for a sentence."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
