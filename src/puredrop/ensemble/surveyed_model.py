"""A model, the survey of where it drops, and the engine that runs its members: what an ensemble is made from."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.nn import Module

from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.inputs import Inputs
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import Task, main_output, reader
from puredrop.members.survey import Survey, survey
from puredrop.pinning import unwrapped
from puredrop.rng import Key

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SurveyedModel"]

_GUESSES = {
    "predict_proba": "type predict(x).mean for the probabilities",
    "std": "type predict(x).variance.sqrt() for the standard deviation between members",
    "to": "type model.to(device): the ensemble runs where its model is",
    "sample": "type predict(x, keep=64).outputs for the outputs of members, or member(3) for one of them as a module",
}


class PowerOfTwo(int):
    """A power of two that prints as one, such as 2^64."""

    def __repr__(self) -> str:
        return f"2^{self.bit_length() - 1}"

    __str__ = __repr__


class SurveyedModel(ABC):
    """Abstract: a model with what is known about its dropout; arguments as of `DropoutEnsemble`."""

    def __init__(
        self,
        model: Module,
        task: Task,
        class_dim: int,
        seed: int,
        sample_dim: int,
        masks: Literal["shared", "independent"],
        balanced: bool | None,
    ) -> None:
        if not (task in ("classification", "regression") if isinstance(task, str) else callable(task)):
            raise ValueError(
                f"task is {task!r}; expected 'classification', 'regression', or a function from what the model returns "
                "to the tensor that is averaged"
            )
        if masks not in ("shared", "independent"):
            raise ValueError(
                f"masks is {masks!r}; expected 'shared' (one for all rows) or 'independent' (one for each)"
            )
        if sample_dim < 0:
            raise ValueError(f"sample_dim is {sample_dim}; expected 0 or more")
        Key(seed)
        self.model = unwrapped(model)
        self.task = task
        self.class_dim = class_dim
        self.seed = seed
        self._sample_dim = sample_dim
        is_shared = masks == "shared"
        self._members = MemberMasks(seed, is_shared, is_shared if balanced is None else balanced)
        self._survey: Survey | None = None

    def __repr__(self) -> str:
        number = f", {self.num_members!r} members" if self._survey else ""
        task = repr(self.task) if isinstance(self.task, str) else getattr(self.task, "__name__", "function")
        return f"{type(self).__name__}({type(self.model).__name__}, task={task}, seed={self.seed}{number})"

    @property
    def units(self) -> int:
        """The number of units that a member keeps or drops in one row.

        Raises:
            RuntimeError: before the first call, which shows it.
        """
        if self._survey is None:
            raise RuntimeError(
                "how many units the model drops shows in its forward; call survey(x) or predict(x) first"
            )
        return sum(use.units for use in self._survey.uses if 0 < use.p < 1)

    @property
    def num_members(self) -> int:
        """The number of members, 2^units."""
        return PowerOfTwo(2**self.units)

    @property
    def skipped(self) -> dict[str, str]:
        """Path of a module or call that drops and is off in all members -> the reason; empty before the first call."""
        return dict(self._survey.skipped) if self._survey else {}

    def survey(self, *inputs: Any, **named_inputs: Any) -> Self:
        """Survey the model again, after its forward or its dropout rates have changed.

        Args:
            inputs, named_inputs: some rows, as for `predict`.

        Returns:
            The ensemble.
        """
        x = self._data("survey", inputs, named_inputs)
        batch = next(batch for batch in self._inputs().batches(x, 2) if batch.rows)
        self._survey = survey(
            self.model, batch, self._members, main_output if isinstance(self.task, str) else self.task
        )
        return self

    @abstractmethod
    def member(self, number: int, *inputs: Any, **named_inputs: Any) -> Module:
        """Return one member as a module."""

    def __getitem__(self, number: int) -> Module:
        return self.member(number)

    __iter__ = None  # a loop over members would not end

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length; read num_members, which len() cannot hold")

    def __bool__(self) -> bool:
        return True

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Name what to type in place of a guessed attribute."""
            hint = f"; {_GUESSES[name]}" if name in _GUESSES else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def _surveyed(self, x: Any) -> Survey:
        if self._survey is None:
            self.survey(x)
        assert self._survey is not None
        return self._survey

    def _engine(self, read: Callable[[Any], Tensor], members: MemberMasks) -> Engine:
        assert self._survey is not None
        instrumented = InstrumentedModel(self.model, self._survey.plan, self._sample_dim)
        return Engine(instrumented, members, read, self._survey.runs, not self._survey.slow)

    def _inputs(self) -> Inputs:
        return Inputs(self.model, self._sample_dim)

    def _data(self, method: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return the inputs of one of the methods as one object; errors as `Inputs.combined`."""
        parameters = inspect.signature(getattr(type(self), method)).parameters.values()
        options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        return self._inputs().combined(inputs, named, options, functools.partial(self._advice, method))

    def _advice(self, method: str, name: str, value: Any) -> str:
        """Return where an argument is given that is none of a method, or ""."""
        if name == "p":
            where = f"members drop at the rates of the model's layers; set them there: layer.p = {value!r}"
        elif name in inspect.signature(type(self)).parameters and name != "model":
            where = f"it is given to the ensemble: DropoutEnsemble(model, {name}={value!r})"
        else:
            return ""
        return f"{name} is no argument of {method}; {where}"

    def _read(self, noise: Callable[[Any], Tensor] | None = None) -> Callable[[Any], Tensor]:
        return reader(self.task, self.class_dim, noise)
