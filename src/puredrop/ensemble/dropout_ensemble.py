"""`DropoutEnsemble`: any model with dropout as the ensemble of its thinned sub-networks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from puredrop.ensemble.calibration import By, acquire
from puredrop.ensemble.export import Frozen, member, number_of
from puredrop.ensemble.moments import Covariance, Moments, carrier
from puredrop.ensemble.prediction import Prediction
from puredrop.ensemble.predictor import Noise, PredictOptions, Predictor
from puredrop.ensemble.surveyed_model import SurveyedModel
from puredrop.inspection.state import restored
from puredrop.members.exact import enumerated_masks, exact
from puredrop.members.outputs import Task, main_output, probabilities
from puredrop.members.sites import SiteUse
from puredrop.members.thinned import RunStep

__all__ = ["DropoutEnsemble"]


class DropoutEnsemble(SurveyedModel):
    """A model with dropout as the ensemble of its 2^n thinned sub-networks, which share its weights.

    Member i is one function for ever: its masks are functions of seed, site and i alone, whatever the device, the
    batch or the number of members. The model may be any module; it is in eval mode but for what drops, so that
    BatchNorm and the rest do as in evaluation, and is as it was after each call. Its weights are read when it is
    called. One thread at a time.

    Args:
        model: trained with dropout; layers of torch, timm, torchvision, transformers and ours, functional dropout,
            attention and recurrent dropout are reached. What draws random numbers of its own is off, and named.
        task: "classification": outputs are logits, and probabilities along class_dim are averaged; "regression":
            outputs are averaged; or a function from what the model returns to the tensor that is averaged.
        class_dim: dimension of the classes in the model's output.
        seed: any integer.
        sample_dim: dimension of the rows in what the model is given and in what it drops from.
        masks: "shared": a member has one mask, for all rows, as the sub-networks of the theory; "independent": it
            has one for each row, counted from the first that is predicted.
        balanced: whether members come in blocks of 16 whose masks balance each other, which makes the error of the mean
            smaller; each alone is iid. By default with shared masks.

    Raises:
        TypeError, ValueError: for an argument outside what is said above.

    Reference: Srivastava et al.: Dropout (JMLR 2014); Gal and Ghahramani: Dropout as a Bayesian approximation (ICML
        2016).

    >>> import torch, puredrop
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> ensemble = puredrop.DropoutEnsemble(net, task="classification")
    >>> prediction = ensemble.predict(torch.randn(8, 4), members=64)
    >>> prediction.mean.shape, ensemble.num_members
    (torch.Size([8, 3]), 2^64)
    """

    def __init__(
        self,
        model: Module,
        task: Task = "classification",
        class_dim: int = 1,
        seed: int = 0,
        *,
        sample_dim: int = 0,
        masks: Literal["shared", "independent"] = "shared",
        balanced: bool | None = None,
    ) -> None:
        super().__init__(model, task, class_dim, seed, sample_dim, masks, balanced)

    def predict(
        self,
        *inputs: Any,
        members: int = 64,
        noise: Noise = None,
        until: Literal["top_class"] | None = None,
        tolerance: float | None = None,
        bounds: tuple[float, float] | None = None,
        confidence: float = 0.95,
        max_members: int = 20_000,
        batch_size: int = 1024,
        memory: int = 256 * 2**20,
        keep: int | None = None,
        progress: bool | Callable[[int, int], None] = False,
        first_row: int = 0,
        **named_inputs: Any,
    ) -> Prediction:
        """Run members on data and say what they agree and disagree about.

        What no decision reaches is computed once for all members of a chunk; memory does not grow with their number.

        Args:
            x: rows: a tensor, an array or a DataFrame; a tuple or a mapping of them, as the model takes them; or a
                DataLoader, of whose batches what the model does not take (labels) is left out.
            members: how many members.
            noise: of a regression: the variance of what is observed about the truth, added to the variance: a number, a
                tensor, or a function from what the model returns to variances.
            until: "top_class" stops a row as soon as its most probable class is certain.
            tolerance: run until the mean of all members lies in an interval of half this width, in place of
                members. This is dear: .01 takes about 740 members at least. Both run members that are not
                balanced, since their guarantee is for independent ones, and at most max_members of them.
            bounds: (lowest, highest) output, for a tolerance of other outputs than probabilities.
            confidence: that all of a row's intervals hold the truth, whenever one stops.
            batch_size: rows at once at most.
            memory: bytes that may be used at once, about.
            keep: outputs of so many members are kept for `Prediction.quantile`; if not given, 64 while they fit into
                `memory`.
            progress: True to be told on stderr; or a function of (rows done, members run on the next ones).
            first_row: how many rows lie before these, where they are a part of more and masks are independent.

        Returns:
            The prediction; it prints.

        Raises:
            TypeError, ValueError: for an argument outside what is said above; for NaN in x, whose rows are named; if
                the model drops nothing that can be reached.

        Reference: Gal and Ghahramani: Dropout as a Bayesian approximation (ICML 2016).
        """
        options = PredictOptions(
            members,
            noise,
            until,
            tolerance,
            bounds,
            confidence,
            max_members,
            batch_size,
            memory,
            keep,
            progress,
            first_row,
        )
        if noise is not None and self.task == "classification":
            raise ValueError("noise is given, but task is 'classification'; it belongs to a regression")
        if until is not None and self.task != "classification":
            raise ValueError(f"until is {until!r}, but task is {self.task!r}; only a classification has a top class")
        reader, x = self._inputs(), self._data("predict", inputs, named_inputs)
        if isinstance(x, Iterator):  # which gives its batches once
            first = next(x, None)
            return self._predictor(iter([first]), options).run(reader, itertools.chain([first], x))
        return self._predictor(x, options).run(reader, x)

    __call__ = predict

    def acquire(self, *inputs: Any, k: int, by: By = "bald", members: int = 64, **named_inputs: Any) -> Tensor:
        """Which rows to label next: those about which the members disagree most.

        Rows are taken one by one, so that several of the k may be alike.

        Args:
            x: as for `predict`.
            k: how many.
            by: "bald", the mutual information of label and member; "entropy" of the mean; or, of a regression, the
                "variance".
            members: members.

        Returns:
            int64 (k,), numbers of rows, the first first.

        Raises:
            ValueError: if k is no number of rows, or by does not fit the task.

        Reference: Houlsby et al.: Bayesian active learning for classification and preference learning (2011); Gal,
            Islam and Ghahramani: Deep Bayesian active learning with image data (ICML 2017).
        """
        return acquire(self.predict(*inputs, members=members, keep=0, **named_inputs), k, by)

    def weight_scaling(self, *inputs: Any, batch_size: int = 1024, **named_inputs: Any) -> Tensor:
        """What one pass in the model's eval mode gives: every unit active, nothing dropped.

        It stands for the members' mean, and is that exactly only where outputs are linear in the masks; in a
        classification it is their geometric mean where logits are.

        Args:
            x: as for `predict`.
            batch_size: rows at once at most.

        Returns:
            Like `Prediction.mean`.

        Reference: Baldi and Sadowski: Understanding dropout (NeurIPS 2013).
        """
        batches = self._inputs().batches(self._data("weight_scaling", inputs, named_inputs), batch_size)
        with restored(self.model), torch.no_grad():
            self.model.eval()
            read = self._read()
            outputs = [read(self.model(*one.args, **one.kwargs)).double() for one in batches]
        return torch.cat(outputs).cpu()

    def exact(
        self, *inputs: Any, mean: Literal["arithmetic", "geometric"] = "arithmetic", **named_inputs: Any
    ) -> Tensor:
        """The mean of all members, by running every one: of at most 20 units, 2^20 members.

        Args:
            x: as for `predict`.
            mean: "arithmetic", of what is averaged; "geometric", of a classification: the softmax of the mean logits.

        Returns:
            Like `Prediction.mean`.

        Raises:
            ValueError: if there are more units, or noise that is no decision; for a geometric mean of a regression.

        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
        >>> bool((DropoutEnsemble(net).exact(torch.randn(5, 4)).sum(1) - 1 < 1e-6).all())
        True
        """
        if mean not in ("arithmetic", "geometric"):
            raise ValueError(f"mean is {mean!r}; expected 'arithmetic' or 'geometric'")
        if mean == "geometric" and self.task != "classification":
            raise ValueError(f"mean is 'geometric', but task is {self.task!r}; expected 'classification'")
        x = self._data("exact", inputs, named_inputs)
        seen = self._surveyed(x)
        # Each row's mean is over the same masks, whether rows share them or not.
        members = replace(self._members, is_shared=True, given=enumerated_masks(seen.uses))
        engine = self._engine(main_output if mean == "geometric" else self._read(), members)
        with engine.opened():
            batches = self._inputs().batches(x, 256)
            found = torch.cat([exact(engine, batch, seen.uses, 256) for batch in batches])
        return probabilities(found, self.class_dim) if mean == "geometric" else found

    def moments(self, *inputs: Any, covariance: Covariance = "full", **named_inputs: Any) -> Moments:
        """Mean and covariance of the outputs under all masks, carried through the layers without sampling.

        Of what the model returns (logits in a classification), for masks that are independent between units. Exact
        where layers are linear; a ReLU takes its input for normal: good for many active inputs and moderate rates, bad
        for few, or for p above .5. The diagonal covariance underrates the deviation (docs/ensemble.md).

        Args:
            x: as for `predict`, for a model that takes one tensor.
            covariance: "full", (rows, units, units) numbers for each layer; or "diagonal", which takes units for
                independent of each other.

        Returns:
            float64 mean, variance and, if full, covariance.

        Raises:
            ValueError: for a layer or function that is not carried, by name: known are Linear, convolutions, ReLU,
                dropout of elements and channels, average pooling, Flatten, and sums.

        Reference: Wang and Manning: Fast dropout training (ICML 2013).
        """
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance is {covariance!r}; expected 'full' or 'diagonal'")
        moments, parts = carrier(self.model, covariance), []
        x = self._data("moments", inputs, named_inputs)
        for batch in self._inputs().batches(x, 64 if covariance == "full" else 1024):
            if len(batch.args) != 1 or batch.kwargs or not isinstance(batch.args[0], Tensor):
                raise ValueError("moments: the model is called with several things; expected one tensor")
            parts.append(moments(batch.args[0]))
        return Moments.joined(parts)

    def member(self, number: int, *inputs: Any, **named_inputs: Any) -> Module:
        """One member as an ordinary module of its own, smaller where units are whole inputs and outputs of layers.

        In eval mode, with copies of the weights; it can be saved, trained further and exported.

        Args:
            number: which.
            x: some rows, where the ensemble has seen none yet.

        Raises:
            ValueError: for what drops and is no layer of its own (functions, attention, recurrent dropout).

        >>> layers = torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3)
        >>> net = torch.nn.Sequential(*layers)
        >>> DropoutEnsemble(net).member(17, torch.randn(2, 4))[0].out_features < 64
        True
        """
        return member(
            self.model, number_of(number), self._members, *self._parts("member", inputs, named_inputs), shared=False
        )

    def freeze(self, *inputs: Any, members: int = 16, **named_inputs: Any) -> Module:
        """The first members as one module that returns their mean and variance: for torch.export, ONNX and a server.

        What is the same in all members it holds once.

        Args:
            members: how many.
            x: some rows, where the ensemble has seen none yet.

        Returns:
            A module in eval mode, of which each call gives (mean, variance), as of `Prediction` with so many members.

        Raises:
            ValueError: as `member`, and if members is below 1.
        """
        if number_of(members) < 1:
            raise ValueError(f"members is {members}; expected 1 or more")
        parts = self._parts("freeze", inputs, named_inputs)
        base = copy.deepcopy(self.model)
        each = [member(base, i, self._members, *parts, shared=True) for i in range(members)]
        return Frozen(each, self.task, self.class_dim).eval()

    def _parts(
        self, method: str, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[SiteUse, ...], list[list[RunStep]]]:
        """What members are made from."""
        if not self._members.is_shared:
            raise ValueError("masks is 'independent', where a member has one mask for each row; expected 'shared'")
        if inputs or named:
            self._surveyed(self._data(method, inputs, named))
        if self._survey is None:
            raise RuntimeError("the ensemble has seen no rows yet, which show where it drops; pass x, some rows")
        seen = self._survey
        return seen.uses, seen.runs

    def _predictor(self, x: Any, options: PredictOptions) -> Predictor:
        seen = self._surveyed(x)
        members = replace(self._members, balanced=False) if options.stops else self._members
        engine = self._engine(self._read(options.noise if callable(options.noise) else None), members)
        return Predictor(engine, seen, self.class_dim if self.task == "classification" else None, options)
