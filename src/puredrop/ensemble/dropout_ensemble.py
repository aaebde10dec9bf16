"""`DropoutEnsemble`: any model with dropout as the ensemble of its thinned sub-networks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._hints import hints
from puredrop.ensemble.calibration import By, acquire
from puredrop.ensemble.export import Frozen, member, number_of
from puredrop.ensemble.moments import Covariance, Moments, carrier
from puredrop.ensemble.prediction import Prediction
from puredrop.ensemble.predictor import Noise, PredictOptions, Predictor
from puredrop.ensemble.surveyed_model import SurveyedModel
from puredrop.inspection.duplicate import duplicate, strays_refused
from puredrop.inspection.finite_weights import check_weights
from puredrop.inspection.state import generators_restored, uncompiled
from puredrop.members.exact import enumerated_masks, exact
from puredrop.members.outputs import Task, main_output, probabilities
from puredrop.members.sites import SiteUse
from puredrop.members.thinned import RunStep

__all__ = ["DropoutEnsemble"]

_COUNTS = ("members", "num_samples", "n_samples", "samples", "n", "num_members", "n_members")
_OF_PREDICT = (
    *("noise", "until", "tolerance", "bounds", "confidence", "max_members", "batch_size", "memory", "keep"),
    *("progress", "first_row"),
)
_GUESSES = {
    **dict.fromkeys(_COUNTS, "the number of members is given to the call: ensemble.predict(x, members={value})"),
    **{name: f"it is given to the call: ensemble.predict(x, {name}={{value}})" for name in _OF_PREDICT},
    "p": "members drop at the rates of the model's layers; set them there: layer.p = {value}",
    "device": "the ensemble runs where its model is: model.to({value})",
}


class DropoutEnsemble(SurveyedModel):
    """A model with dropout as the ensemble of its 2^n thinned sub-networks, which share its weights.

    Use it to get uncertainty from a model that was trained with dropout: `predict` runs members, each with its own
    dropout mask, and returns their mean and disagreement. Member i is always the same function: its masks depend on
    seed, site and i alone, not on the device, the batch or the number of members. The model is in eval mode except for
    its dropout, and is restored after each call; its weights are read at each call. Use one thread at a time.

    Args:
        model: module trained with dropout. Layers of torch, timm, torchvision, transformers and puredrop, functional
            dropout, attention and recurrent dropout are reached; other random modules are off and named in `skipped`.
        task: "classification" averages probabilities, the softmax of the outputs along class_dim; "regression"
            averages outputs; a function from what the model returns to a tensor averages that tensor.
        class_dim: dimension of the classes in the model's output.
        seed: integer from which all masks are derived.
        sample_dim: dimension of the rows in the model's inputs. Where they lie inside the model, such as after time or
            together with heads, one forward on more rows shows.
        masks: "shared" gives a member one mask for all rows, as in the theory of sub-networks; "independent" gives it
            one for each row, counted from the first row that is predicted.
        balanced: whether members come in blocks of 16 with stratified masks, so that their mean has a smaller error;
            each member alone is still iid. None balances shared masks only.

    Raises:
        TypeError, ValueError: if an argument has another type or value.

    Reference: Srivastava et al.: Dropout (JMLR 2014); Gal and Ghahramani: Dropout as a Bayesian approximation (ICML
        2016).

    >>> import torch, puredrop
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3))
    >>> ensemble = puredrop.DropoutEnsemble(net, task="classification")
    >>> prediction = ensemble.predict(torch.randn(8, 4), members=64)
    >>> prediction.mean.shape, ensemble.num_members
    (torch.Size([8, 3]), 2^64)
    """

    @hints(**_GUESSES)
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
        """Run members on data and return their mean and their disagreement.

        `ensemble(x)` is the same. Work that no mask reaches is done once for many members, and memory does not grow
        with their number. Options win over inputs of the same name; pass such inputs by position.

        Args:
            inputs: the model's inputs, rows first: tensors, arrays or DataFrames (`predict(x, z)`); or alone a tuple or
                a mapping of them, or a DataLoader, of whose batches the model gets what its forward takes.
            members: number of members.
            noise: variance of the noise around a regression's truth, added to the variance between members: a number, a
                tensor, or a function from what the model returns to variances.
            until: "top_class" stops a row as soon as its most probable class is certain.
            tolerance: half-width of an interval for the mean of all members; rows run until theirs is as short. At
                0.01 this takes 740 members or more. Such runs use independent, not balanced, members.
            bounds: (lowest, highest) possible output; needed with tolerance unless outputs are probabilities.
            confidence: probability that all intervals of a row hold the truth, whenever it stops.
            max_members: most members that until and tolerance may run.
            batch_size: most rows at once.
            memory: bytes that may be used at once, approximately.
            keep: number of members whose outputs are kept in `Prediction.outputs`; None keeps 64 if they fit.
            progress: True prints progress to stderr; a function gets (rows done, members of the next rows).
            first_row: number of rows that precede these, for independent masks.
            named_inputs: the model's inputs by the names of its forward (`predict(**batch)`).

        Returns:
            The prediction; it prints as a table.

        Raises:
            TypeError, ValueError: for an argument outside of this; for a name that neither predict nor the model's
                forward takes; for NaN in an input, whose rows are named; if no dropout of the model is reached; for a
                site, which is named, whose masks cannot follow the rows.

        Reference: Gal and Ghahramani: Dropout as a Bayesian approximation (ICML 2016).

        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
        >>> DropoutEnsemble(net).predict(torch.randn(5, 4), members=32).members
        32
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
        """Return the rows to label next: those on which the members disagree most.

        Rows are scored one by one, so several of the k may be alike.

        Args:
            inputs, named_inputs: as for `predict`.
            k: number of rows to choose.
            by: "bald", the mutual information of label and member; "entropy" of the mean; or "variance", for a
                regression.
            members: number of members.

        Returns:
            int64 (k,), numbers of rows, the most informative first.

        Raises:
            ValueError: if k is not between 1 and the number of rows, or by does not fit the task.

        Reference: Houlsby et al.: Bayesian active learning for classification and preference learning (2011); Gal,
            Islam and Ghahramani: Deep Bayesian active learning with image data (ICML 2017).
        """
        return acquire(self.predict(*inputs, members=members, keep=0, **named_inputs), k, by)

    def weight_scaling(self, *inputs: Any, batch_size: int = 1024, **named_inputs: Any) -> Tensor:
        """Return the output of one pass in eval mode, where every unit is active.

        This is the usual approximation of the members' mean. It is exact where outputs are linear in the masks; in a
        classification whose logits are, it is the members' geometric mean.

        Args:
            inputs, named_inputs: as for `predict`.
            batch_size: most rows at once.

        Returns:
            float64, like `Prediction.mean`.

        Reference: Baldi and Sadowski: Understanding dropout (NeurIPS 2013).
        """
        batches = self._inputs().batches(self._data("weight_scaling", inputs, named_inputs), batch_size)
        model, read = duplicate(self.model).eval(), self._read()
        guard = nullcontext() if self._survey else strays_refused(self.model)  # a survey has refused them already
        with generators_restored(), torch.no_grad(), uncompiled, guard:
            outputs = [read(model(*batch.args, **batch.kwargs)).double() for batch in batches]
        mean = torch.cat(outputs).cpu()
        check_weights(self.model, mean)
        return mean

    def exact(
        self, *inputs: Any, mean: Literal["arithmetic", "geometric"] = "arithmetic", **named_inputs: Any
    ) -> Tensor:
        """Return the mean of all members by running each of them: for models of at most 20 units, 2^20 members.

        Use it to judge approximations on small models.

        Args:
            inputs, named_inputs: as for `predict`.
            mean: "arithmetic" averages probabilities or outputs; "geometric", for a classification, is the softmax of
                the mean logits.

        Returns:
            float64, like `Prediction.mean`.

        Raises:
            ValueError: if the model drops more units, or adds noise other than dropout; for the geometric mean of a
                regression.

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
        members = replace(self._members, is_shared=True, chosen_masks=enumerated_masks(seen.uses))
        engine = self._engine(main_output if mean == "geometric" else self._read(), members)
        with engine.opened():
            batches = self._inputs().batches(x, 256)
            total = torch.cat([exact(engine, batch, seen.uses, 256) for batch in batches])
        return probabilities(total, self.class_dim) if mean == "geometric" else total

    def moments(self, *inputs: Any, covariance: Covariance = "full", **named_inputs: Any) -> Moments:
        """Carry mean and covariance of the model's output under all masks through the layers, without sampling.

        The output is what the model returns (logits in a classification), under masks that are independent between
        units. Linear layers are exact. A ReLU treats its input as normal, which is good for many active inputs and
        moderate rates, and bad for few inputs or p above 0.5. The diagonal covariance underestimates the deviation
        (docs/ensemble.md).

        Args:
            inputs, named_inputs: as for `predict`, for a model of one tensor.
            covariance: "full" carries (rows, units, units) numbers for each layer; "diagonal" treats units as
                independent of each other.

        Returns:
            float64 mean, variance and, if full, covariance.

        Raises:
            ValueError: for a layer or function that is not supported, with its name; supported are Linear,
                convolutions, ReLU, dropout of elements and channels with p below 1, average pooling, Flatten, and sums.
                "diagonal" refuses dropout of channels of maps, and pooling and sums after dropout.

        Reference: Wang and Manning: Fast dropout training (ICML 2013).
        """
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance is {covariance!r}; expected 'full' or 'diagonal'")
        moments, parts = carrier(self.model, covariance), []
        x = self._data("moments", inputs, named_inputs)
        for batch in self._inputs().batches(x, 64 if covariance == "full" else 1024):
            if not batch.rows:
                continue
            if len(batch.args) != 1 or batch.kwargs or not isinstance(batch.args[0], Tensor):
                raise ValueError("moments: the model is called with several things; expected one tensor")
            parts.append(moments(batch.args[0]))
            check_weights(self.model, parts[-1].mean)
        return Moments.joined(parts)

    def member(self, number: int, *inputs: Any, **named_inputs: Any) -> Module:
        """Return one member as an ordinary module, smaller where whole inputs and outputs of layers are dropped.

        It is in eval mode with copies of the weights; it can be saved, trained further and exported.
        `ensemble[17]` is `ensemble.member(17)`.

        Args:
            number: the member's number, 0 or more.
            inputs, named_inputs: some rows of the model's inputs, needed if the ensemble has run on no rows yet.

        Raises:
            ValueError: for dropout outside of dropout layers (functions, attention, recurrent dropout), a dropout layer
                that is used twice in a forward, a batchwise model, or a negative number.
            RuntimeError: if the ensemble has run on no rows yet and no rows are given.

        >>> layers = torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 3)
        >>> net = torch.nn.Sequential(*layers)
        >>> DropoutEnsemble(net).member(17, torch.randn(2, 4))[0].out_features < 64
        True
        """
        return member(
            self.model, number_of(number), self._members, *self._parts("member", inputs, named_inputs), shared=False
        )

    def freeze(self, *inputs: Any, members: int = 16, **named_inputs: Any) -> Module:
        """Return the first members as one module that computes their mean and variance.

        Use it for torch.export, ONNX and servers.

        Parameters that are the same in all members are held once.

        Args:
            inputs, named_inputs: some rows, needed if the ensemble has run on none yet.
            members: number of members.

        Returns:
            A module in eval mode; each call returns (mean, variance), as `Prediction` has them for so many members.

        Raises:
            ValueError: as for `member`, and if members is below 1.
            RuntimeError: if the ensemble has run on no rows yet and none are given.

        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
        >>> mean, variance = DropoutEnsemble(net).freeze(torch.randn(2, 4), members=4)(torch.randn(5, 4))
        >>> mean.shape
        torch.Size([5, 3])
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
        """Return the uses of sites and the runs of layers that a member is made from."""
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
