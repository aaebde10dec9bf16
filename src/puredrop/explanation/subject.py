"""A network and its data as all questions of one analysis share them, and what was measured so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from puredrop.explanation._inputs import choose, resolve_class_dim
from puredrop.members.prepared import PreparedModel, keep_all, prepare
from puredrop.report.figures import Figure
from puredrop.report.section import Section

__all__ = ["Case", "Question", "Subject"]

_MOST_SITES = 12
"""Up to so many sites each is also measured alone: in a deep encoder each takes as long as all together."""


@dataclass(frozen=True)
class Subject:
    """A trained network and its data.

    Args:
        name: for headings.
        model: trained; its rates above 0.
        x, y: rows and targets that it was not trained on, if there are any.
        task: what it predicts: classes of cross entropy, or numbers of a squared error.
        train_x, train_y: rows that it was trained on, for what dropout adds to their loss; the same rows if None.
        undropped: the same network trained without dropout, with dropout layers at the same places.
        draws: masks to count, as many as a training draws: epochs times rows.
        masks: a function that returns the masks of its own training, as `member_visits` takes them; None to draw some.
        members: number of masks, members and orders that are run; more is more exact.
        seed: of all of them.
        class_dim: dimension of the classes in the model's outputs; None to find it from y.
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
    class_dim: int | None = None

    @property
    def trained(self) -> tuple[Any, Tensor]:
        """Rows and targets that the network was trained on."""
        return (self.x, self.y) if self.train_y is None else (self.train_x, self.train_y)

    def fewer(self, rows: int) -> Subject:
        """Return the subject with so many of its rows, drawn at random, where there are more."""
        generator = torch.Generator().manual_seed(self.seed)
        x, y = _choose(self.x, self.y, rows, generator)
        if self.train_y is None:
            return replace(self, x=x, y=y)
        train_x, train_y = _choose(self.train_x, self.train_y, rows, generator)
        return replace(self, x=x, y=y, train_x=train_x, train_y=train_y)


def _choose(x: Any, y: Tensor, rows: int, generator: torch.Generator) -> tuple[Any, Tensor]:
    if len(y) <= rows:
        return x, y
    which = torch.randperm(len(y), generator=generator)[:rows].sort().values
    return choose(x, which), y[which.to(y.device)]


class Case:
    """One subject under analysis: the model is surveyed once, and questions leave their results to later ones.

    Args:
        subject: the network and its data.

    Attributes:
        prepared: the surveyed model with x.
        y, train_y: targets, a regression's in the shape of the outputs.
        results: name of a measure -> its result.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        prepared = prepare(subject.model, subject.x, seed=subject.seed)
        if subject.task == "classification":
            prepared = resolve_class_dim(prepared, subject.class_dim, prepared.targets(subject.y))
        self.prepared: PreparedModel = prepared
        self.loss = F.cross_entropy if subject.task == "classification" else F.mse_loss
        self.per_site = len(prepared.uses) <= _MOST_SITES
        self.results: dict[str, Any] = {}

    @cached_property
    def outputs(self) -> Tensor:
        """The outputs of one pass for the first batch of rows."""
        with self.prepared.instrument() as runner:
            return runner.forward(self.prepared.batches[0], keep_all)

    @cached_property
    def y(self) -> Tensor:
        """Targets of x."""
        return self._fitting(self.subject.y)

    @cached_property
    def train_y(self) -> Tensor:
        """Targets of the rows that the network was trained on."""
        return self._fitting(self.subject.trained[1])

    def _fitting(self, y: Tensor) -> Tensor:
        """A regression's targets in the shape and dtype of the outputs; classes as they are.

        Raises:
            ValueError: for a regression's targets of another size.
        """
        if self.subject.task == "regression" and y.numel() == len(y) * self.outputs[0].numel():
            return y.reshape(len(y), *self.outputs.shape[1:]).to(self.outputs.dtype)
        if self.subject.task == "regression":
            raise ValueError(
                f"y has dtype {y.dtype} and shape {tuple(y.shape)}; expected {(len(y), *self.outputs.shape[1:])}, the "
                "shape of the model's outputs in a regression (for classes pass whole numbers: y.long())"
            )
        return y


@dataclass(frozen=True)
class Question:
    """A question of the page.

    Args:
        id: of its section, in the page's address; `exclude` takes it.
        text: its heading.
        applies: whether a model can be asked.
    """

    id: str
    text: str
    applies: Callable[[Module], bool] = field(default=lambda model: True)

    def answer(
        self, sentence: str, number: str, label: str, how: str, *figures: Figure, drawing: dict[str, Any] | None = None
    ) -> Section:
        """Return the section that answers it."""
        return Section(self.id, self.text, sentence, number, label, figures, how, drawing)
