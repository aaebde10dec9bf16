"""The prediction of an ensemble: the members' mean, their disagreement, and the error of the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from puredrop._records import Records
from puredrop._text import table

__all__ = ["Prediction"]

_SHOWN_ROWS = 5
_MEANS = "type prediction.mean for the mean probabilities, or outputs of a regression"
_CLASSES = "type prediction.mean.argmax(1) for the most probable class of each row"
_DEVIATION = "type prediction.variance.sqrt() for the standard deviation between members"
_ERROR = "type prediction.standard_error for the standard error of the mean"
_OUTPUTS = "type predict(x, keep=64).outputs for the outputs of members"
_TABLE = "type prediction.frame() for a DataFrame"
_GUESSES = {
    **dict.fromkeys(("probs", "probabilities", "proba", "predict_proba", "scores", "values"), _MEANS),
    **dict.fromkeys(("label", "labels", "classes", "predictions", "pred", "preds", "argmax", "top_class"), _CLASSES),
    **dict.fromkeys(("std", "stddev", "std_dev", "sd", "sigma"), _DEVIATION),
    **dict.fromkeys(("se", "sem", "stderr"), _ERROR),
    **dict.fromkeys(("samples", "all_outputs"), _OUTPUTS),
    **dict.fromkeys(("df", "to_df", "to_pandas", "to_frame", "dataframe"), _TABLE),
    "mean_std": "type prediction.mean and prediction.variance.sqrt()",
    "var": "type prediction.variance",
    "uncertainty": "type prediction.entropy or prediction.mutual_information for a classification, else "
    "prediction.variance",
    "bald": "type prediction.mutual_information",
    "epistemic": "type prediction.mutual_information, or prediction.variance for a regression",
    "aleatoric": "type prediction.expected_entropy",
    "confidence": "type prediction.mean.max(1).values for the largest probability of each row",
    "logits": "members' probabilities are averaged; DropoutEnsemble(model, task='regression') averages logits",
    "intervals": "type prediction.interval, or prediction.quantile([0.05, 0.95])",
    "quantiles": "type prediction.quantile([0.05, 0.95])",
    "shape": "type prediction.mean.shape",
    "numpy": "type prediction.mean.numpy()",
    "cpu": "its tensors are on the CPU",
    "to": "its tensors are on the CPU; type prediction.mean.to(device)",
}
"""Attributes that users try -> what to type."""


@dataclass(frozen=True, repr=False)
class Prediction(Records):
    """The members' mean for each row, how much members differ, and how far the mean may be from that of all members.

    `DropoutEnsemble.predict` returns it. It prints as a table, also in notebooks. Tensors are float64 on the CPU; their
    first dimension is the row, and the others are those of the model's output.

    Args:
        mean: mean over members: of class probabilities in a classification, of the outputs otherwise.
        variance: variance between members, unbiased, like the mean; the noise of a regression is added if it was given
            (law of total variance). NaN for a single member.
        standard_error: standard error of the mean, like the mean: how much it would vary with other members. NaN where
            one block of 16 balanced members, or one member, was run.
        members: number of members that were run; int64 (rows,) where rows stopped at different numbers.
        entropy: classification only: entropy of the mean probabilities in nats, (rows, ...), corrected by a jackknife
            for the finite number of members.
        expected_entropy: classification only: mean of the members' entropies in nats, (rows, ...).
        interval: with `tolerance` or `until`: (rows, ..., 2), bounds that hold the mean of all members.
        skipped: path of a module or call that drops and is off in all members -> the reason.
        slow: the reason for running members one after the other; "" if many ran at once.
        outputs: outputs of the first members, (members, rows, ...), float32; None if they did not fit into memory.
        class_dim: dimension of the classes in the model's output; None if the task is no classification.

    Reference: Depeweg et al.: Decomposition of uncertainty in Bayesian deep learning (ICML 2018), on entropy, expected
        entropy and mutual information.

    >>> import puredrop
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
    >>> prediction = puredrop.DropoutEnsemble(net).predict(torch.randn(5, 4), members=32)
    >>> len(prediction), prediction.mean.shape, prediction.entropy.shape
    (5, torch.Size([5, 3]), torch.Size([5]))
    >>> sorted(prediction.records()[0])[:3]
    ['entropy', 'expected_entropy', 'label']
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
        """Entropy less expected entropy in nats: the members' disagreement; None if the task is not classification.

        Where members agree it may lie slightly below 0, because the entropy is corrected for the number of members.
        """
        if self.entropy is None or self.expected_entropy is None:
            return None
        return self.entropy - self.expected_entropy

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Return quantiles of the outputs of those members that were kept (`predict(keep=)`).

        Args:
            q: one or several levels in [0, 1].

        Returns:
            float64, like the mean; for several levels with one more dimension in front.

        Raises:
            ValueError: if a level lies outside [0, 1], or no outputs were kept.
        """
        if not all(0 <= level <= 1 for level in np.atleast_1d(q)):
            raise ValueError(f"q is {q!r}; expected numbers in [0, 1]")
        if self.outputs is None:
            raise ValueError("no outputs were kept; call predict(..., keep=256), which holds so many outputs in memory")
        # Not torch.quantile, which takes 16 million numbers at most.
        return torch.from_numpy(np.quantile(self.outputs.double().numpy(), q, axis=0))

    @staticmethod
    def joined(parts: Sequence[Prediction]) -> Prediction:
        """Return one prediction for the rows of several."""
        first = parts[0]
        if len(parts) == 1:
            return first
        changes: dict[str, Any] = {}
        for attribute in fields(Prediction):
            values = [getattr(part, attribute.name) for part in parts]
            if isinstance(values[0], Tensor) and attribute.name != "outputs":
                changes[attribute.name] = torch.cat(values)
        outputs = [part.outputs for part in parts if part.outputs is not None]
        few = min((len(values) for values in outputs), default=0)
        changes["outputs"] = torch.cat([values[:few] for values in outputs], 1) if len(outputs) == len(parts) else None
        return replace(first, **changes)

    def rows(self, numbers: Tensor) -> Prediction:
        """Return the prediction of some of the rows.

        Args:
            numbers: int64 numbers of rows.
        """
        changes: dict[str, Any] = {}
        for attribute in fields(Prediction):
            name, value = attribute.name, getattr(self, attribute.name)
            if isinstance(value, Tensor):
                changes[name] = value[:, numbers] if name == "outputs" else value[numbers]
            elif name == "members" and isinstance(value, int):
                changes[name] = torch.full((len(numbers),), value)
        return replace(self, **changes)

    def __len__(self) -> int:
        return len(self.mean)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Name what to type in place of a guessed attribute."""
            hint = f"; {_GUESSES[name]}" if name in _GUESSES else ""
            raise AttributeError(f"Prediction has no attribute {name!r}{hint}")

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of all rows, with the number of members and what was skipped; None stands for NaN."""
        members = self.members if isinstance(self.members, int) else self.members.tolist()
        rows = [{name: None if math.isnan(value) else value for name, value in row.items()} for row in self.records()]
        facts = {"members": members, "class_dim": self.class_dim, "skipped": dict(self.skipped), "slow": self.slow}
        return {**facts, "rows": rows}

    def records(self) -> list[dict[str, Any]]:
        """Return a dictionary for each row: label, mean, errors, entropies; flattened outputs are numbered."""
        columns = self.columns()
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def columns(self) -> dict[str, Any]:
        """Return the columns of `frame`: label, mean, errors, entropies; flattened outputs are numbered."""
        columns: dict[str, Any] = {}
        if self.class_dim is not None and self.mean.dim() == 2:
            columns["label"] = self.mean.argmax(1).numpy()
        for name, value in self._values().items():
            flat = value.reshape(len(self), math.prod(value.shape[1:]))
            names = [name] if flat.shape[1] == 1 else [f"{name}_{i}" for i in range(flat.shape[1])]
            columns.update(zip(names, flat.T.numpy(), strict=True))
        return columns

    def _values(self) -> dict[str, Tensor]:
        values = {"mean": self.mean, "standard_error": self.standard_error, "variance": self.variance}
        if self.entropy is not None and self.expected_entropy is not None:
            information = self.mutual_information
            assert information is not None
            values |= {"entropy": self.entropy, "expected_entropy": self.expected_entropy}
            values["mutual_information"] = information
        if isinstance(self.members, Tensor):
            values["members"] = self.members
        return values

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and lines of the first rows, or means over all rows where a row has too many outputs."""
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
                cells = [str(top), f"{float(mean[top]):.3f}" + _plus_minus(error[top], ".3f")]
                cells += [f"{float(self.entropy[row]):.3f}", f"{information:.3f}"]
            else:
                each = zip(mean.flatten(), error.flatten(), variance.flatten(), strict=True)
                cells = [
                    f"{m:.4g}{_plus_minus(e, '.2g')}{'' if v.isnan() else f'  (sd {v**0.5:.3g})'}" for m, e, v in each
                ]
            lines.append([str(row), *cells])
        if self.entropy is not None:
            return ["row", "class", "probability ± se", "entropy", "mutual information"], lines
        return ["row", *(["output ± se"] * math.prod(self.mean.shape[1:]))], lines

    @property
    def _summary(self) -> str:
        number = str(self.members)
        if isinstance(self.members, Tensor):
            number = f"{int(self.members.min())} to {int(self.members.max())}" if len(self.members) else "no"
        return f"{len(self)} rows, {number} members"

    def _notes(self) -> list[str]:
        notes = [f"not part of any member: {path}: {why}" for path, why in self.skipped.items()]
        if len(self) and bool(self.standard_error.isnan().all()):
            notes.append("no standard error: it needs two blocks of 16 balanced members; run members=32 or more")
        return notes + ([f"members ran one after the other: {self.slow}"] if self.slow else [])

    def __str__(self) -> str:
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


def _plus_minus(error: Tensor, form: str) -> str:
    """Return the error of a figure with its sign; empty where it is not known."""
    return "" if error.isnan() else f" ± {float(error):{form}}"
