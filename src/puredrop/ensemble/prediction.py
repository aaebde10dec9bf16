"""What an ensemble predicts: the mean of its members, how much they differ, how far the mean is from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puredrop._text import table

if TYPE_CHECKING:
    import pandas

__all__ = ["Prediction"]

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class Prediction:
    """The members' outputs in figures, for each row; tensors in float64, on the CPU.

    Args:
        mean: of the members: of probabilities in a classification, of outputs else.
        variance: between members, plus the noise of a regression if that was given (law of total variance).
        standard_error: of the mean: how far it may be from that of all members, for want of more members.
        members: members that were run; int64 (rows,) where rows stopped at different numbers.
        entropy: of a classification: of the mean, nats, its bias for want of members taken away (jackknife).
        expected_entropy: of a classification: the mean of the members' entropies, nats.
        interval: with `tolerance` or `until`: (rows, ..., 2), bounds that hold the mean of all members.
        skipped: path of what drops in the model and is no part of any member -> why.
        slow: why members were run one after the other; "" if many at once.
        outputs: (members, rows, ...): outputs of the first members, for quantiles; float32.
        class_dim: dimension of the classes; None if there are none.
    """

    mean: Tensor
    variance: Tensor
    standard_error: Tensor
    members: int | Tensor
    entropy: Tensor | None = None
    expected_entropy: Tensor | None = None
    interval: Tensor | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    slow: str = ""
    outputs: Tensor | None = None
    class_dim: int | None = None

    @property
    def mutual_information(self) -> Tensor | None:
        """Of a classification: entropy less expected entropy, nats: what the members disagree about.

        The jackknife may leave it a little below 0 where there is next to none.
        """
        if self.entropy is None or self.expected_entropy is None:
            return None
        return self.entropy - self.expected_entropy

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Of the members' outputs, from those that were kept (`predict(keep=)`).

        Args:
            q: in [0, 1], one or several.

        Returns:
            Like the mean; for several, with one dimension more in front.

        Raises:
            ValueError: if q lies outside [0, 1], or no outputs were kept.
        """
        levels = torch.as_tensor(q, dtype=torch.float64)
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"q is {q!r}; expected numbers in [0, 1]")
        if self.outputs is None:
            raise ValueError("no outputs were kept; call predict(..., keep=256), which holds so many outputs in memory")
        ordered = self.outputs.double().sort(0).values
        at = levels * (len(ordered) - 1)
        below = at.floor().long()
        above = (below + 1).clamp_max(len(ordered) - 1)
        share = (at - below).reshape(*levels.shape, *[1] * (ordered.dim() - 1))
        return ordered[below] * (1 - share) + ordered[above] * share

    @staticmethod
    def joined(parts: Sequence[Prediction]) -> Prediction:
        """Of all rows, from those of some."""
        first = parts[0]
        if len(parts) == 1:
            return first
        found: dict[str, Any] = {}
        for one in fields(Prediction):
            values = [getattr(part, one.name) for part in parts]
            if isinstance(values[0], Tensor) and one.name != "outputs":
                found[one.name] = torch.cat(values)
        outputs = [part.outputs for part in parts if part.outputs is not None]
        few = min((len(one) for one in outputs), default=0)
        found["outputs"] = torch.cat([one[:few] for one in outputs], 1) if len(outputs) == len(parts) else None
        return replace(first, **found)

    def rows(self, which: Tensor) -> Prediction:
        """Some of the rows.

        Args:
            which: int64 numbers of rows.
        """
        found: dict[str, Any] = {}
        for one in fields(Prediction):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                found[one.name] = value[:, which] if one.name == "outputs" else value[which]
            elif one.name == "members" and isinstance(value, int):
                found[one.name] = torch.full((len(which),), value)
        return replace(self, **found)

    def __len__(self) -> int:
        return len(self.mean)

    def frame(self) -> pandas.DataFrame:
        """As a table, a line for each row; columns of flattened outputs are numbered.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        import pandas as pd

        rows = len(self)
        columns: dict[str, Any] = {}
        for name, value in self._values().items():
            flat = value.reshape(rows, -1)
            names = [name] if flat.shape[1] == 1 else [f"{name}_{i}" for i in range(flat.shape[1])]
            columns.update(zip(names, flat.T.numpy(), strict=True))
        if self.class_dim is not None and self.mean.dim() == 2:
            columns = {"label": self.mean.argmax(1).numpy(), **columns}
        return pd.DataFrame(columns)

    def _values(self) -> dict[str, Tensor]:
        found = {"mean": self.mean, "standard_error": self.standard_error, "variance": self.variance}
        if self.entropy is not None and self.expected_entropy is not None:
            information = self.mutual_information
            assert information is not None
            found |= {"entropy": self.entropy, "expected_entropy": self.expected_entropy}
            found["mutual_information"] = information
        if isinstance(self.members, Tensor):
            found["members"] = self.members
        return found

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and lines of the first rows."""
        if self.mean.dim() > 2 or (self.class_dim is None and self.mean.dim() == 2 and self.mean.shape[1] > 3):
            return ["figure", "mean over rows and outputs"], [
                [name, f"{float(value.double().mean()):.4g}"] for name, value in self._values().items()
            ]
        lines = []
        for row in range(min(_SHOWN_ROWS, len(self))):
            mean, error, variance = self.mean[row], self.standard_error[row], self.variance[row]
            if self.entropy is not None and self.expected_entropy is not None:
                top = int(mean.argmax())
                information = float(self.entropy[row] - self.expected_entropy[row])
                cells = [str(top), f"{float(mean[top]):.3f} ± {float(error[top]):.3f}"]
                cells += [f"{float(self.entropy[row]):.3f}", f"{information:.3f}"]
            else:
                each = zip(mean.flatten(), error.flatten(), variance.flatten(), strict=True)
                cells = [f"{m:.4g} ± {e:.2g}  (sd {v**0.5:.3g})" for m, e, v in each]
            lines.append([str(row), *cells])
        if self.entropy is not None:
            return ["row", "class", "probability ± se", "entropy", "mutual information"], lines
        return ["row", *(["output ± se"] * (len(lines[0]) - 1))], lines

    @property
    def _summary(self) -> str:
        number = str(self.members)
        if isinstance(self.members, Tensor):
            number = f"{int(self.members.min())} to {int(self.members.max())}"
        return f"{len(self)} rows, {number} members"

    def _notes(self) -> list[str]:
        notes = [f"not part of any member: {path}: {why}" for path, why in self.skipped.items()]
        return notes + ([f"members ran one after the other: {self.slow}"] if self.slow else [])

    def __repr__(self) -> str:
        heads, lines = self._table()
        more = ["..."] if len(self) > len(lines) and heads[0] == "row" else []
        return "\n".join([self._summary, table([heads, *lines]), *more, *self._notes()])

    def _repr_html_(self) -> str:
        import html

        heads, lines = self._table()
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return f"<p>{self._summary}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"
