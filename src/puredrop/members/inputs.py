"""The inputs of a model: tensors, arrays, tables, mappings, or a loader of them, read as batches of rows."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from puredrop.inspection import call_arguments
from puredrop.inspection.tensors import tensors_in, with_tensors

__all__ = ["Batch", "Inputs", "Call", "checked_number"]

_SHOWN = 5
_GUESSES = ("num_samples", "n_samples", "samples", "n", "num_members", "n_members")
"""Names under which other libraries have the number of members."""


@dataclass(frozen=True)
class Batch:
    """Rows of data with the arguments that a model is called with.

    Args:
        args, kwargs: arguments of the call.
        rows: number of rows.
        dim: dimension of the rows in each tensor.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int
    dim: int

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with each tensor that holds rows changed; other arguments stay."""

        def changed(tensor: Tensor) -> Tensor:
            return change(tensor) if tensor.dim() > self.dim and tensor.shape[self.dim] == self.rows else tensor

        args, kwargs = with_tensors(self.args, changed), with_tensors(self.kwargs, changed)
        rows = next((t.shape[self.dim] for t in tensors_in((args, kwargs)) if t.dim() > self.dim), self.rows)
        return Batch(args, kwargs, rows, self.dim)

    def select(self, rows: Tensor) -> Batch:
        """Return the batch of some of the rows."""
        return self.mapped(lambda tensor: tensor.index_select(self.dim, rows.to(tensor.device)))

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the rows, at most `size` at a time."""
        if size >= self.rows:
            yield self
            return
        for start in range(0, self.rows, size):
            yield self._part(start, min(size, self.rows - start))

    def _part(self, start: int, size: int) -> Batch:
        return self.mapped(lambda tensor: tensor.narrow(self.dim, start, size))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return list(tensors_in((self.args, self.kwargs)))


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the model that holds all rows.

    Args:
        args, kwargs: positional and named arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Inputs:
    """A reader of the inputs that a user gives.

    Args:
        model: the model to be called.
        dim: dimension of the rows.
    """

    def __init__(self, model: Module, dim: int) -> None:
        self._model = model
        self._signature = inspect.signature(model.forward)
        first = next(iter(model.parameters()), None)
        self._device = first.device if first is not None else None
        self._dtype = first.dtype if first is not None and first.is_floating_point() else torch.float32
        self._dim = dim

    def combined(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Sequence[str],
        advice: Callable[[str, Any], str] = lambda name, value: "",
    ) -> Any:
        """Return a call's inputs as one object that `batches` reads.

        Args:
            args, kwargs: the model's inputs, as the user gave them.
            options: names of the other arguments of the called method.
            advice: function from the name and value of an argument that the model does not take to what to type, or "".

        Raises:
            TypeError: if there are no inputs, or some that the model's forward does not take.
        """
        parameters = self._signature.parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in [name for name in kwargs if name not in parameters]:
            if name in _GUESSES and "members" in options:
                raise TypeError(f"{name} is no argument; the number of members is members={kwargs[name]!r}")
            if text := advice(name, kwargs[name]):
                raise TypeError(text)
            if not takes_all:
                raise TypeError(
                    f"{name} is no option ({', '.join(options)}) and no input of the model "
                    f"({', '.join(parameters) or 'none'}); expected one of these names"
                )
        if not args and not kwargs:
            raise TypeError("there are no inputs; expected those of the model, such as predict(x)")
        if any(isinstance(argument, int) for argument in args) and (len(args) == 1 or not self._binds(args, kwargs)):
            raise TypeError(f"an input is {args[-1]!r}; expected rows of data (the number of members is members=...)")
        if len(args) == 1 and not kwargs:
            return args[0]
        if any(map(self.is_loader, (*args, *kwargs.values()))):
            raise TypeError(
                "a DataLoader is given with other inputs; expected the DataLoader alone, which yields all inputs"
            )
        if not self._binds(args, kwargs):
            raise TypeError(
                f"the model does not take {len(args)} inputs and the names {sorted(kwargs)}; expected "
                f"{self._signature} (the options of this method are {', '.join(options)})"
            )
        return Call(args, kwargs)

    def batches(self, x: Any, size: int, first: int = 0) -> Iterator[Batch]:
        """Yield the rows in their order, at most `size` at a time; a loader's batches as they come.

        Args:
            x: the data.
            size: rows at most.
            first: number of the first row, for errors.

        Raises:
            TypeError: for what is no data.
            ValueError: for data without rows, or with NaN in them, which are named.
        """
        at = first
        for inputs in self._loaded(x):
            batch = self._batch(inputs)
            _refuse_nan(batch, at)
            at += batch.rows
            yield from batch.parts(size)
        if at == first:
            raise ValueError("x has no rows; expected one at least")

    def is_loader(self, x: Any) -> bool:
        """Return whether an object yields batches and is no batch itself."""
        if isinstance(x, list):  # of batches, or of the arguments of one call
            return len(x) > 0 and isinstance(x[0], (Mapping, tuple))
        is_data = isinstance(x, (Tensor, np.ndarray, Mapping, tuple, str)) or hasattr(x, "to_numpy")
        return isinstance(x, Iterable) and not is_data

    def _loaded(self, x: Any) -> Iterable[Any]:
        if not self.is_loader(x):
            return [x]
        if isinstance(getattr(x, "sampler", None), torch.utils.data.RandomSampler):
            warnings.warn("the loader shuffles: predictions come in its order, not the data's", stacklevel=2)
        batches: Iterable[Any] = x
        return batches

    def _batch(self, x: Any) -> Batch:
        args, kwargs = self._call(x)
        args, kwargs = self._moved(args), self._moved(kwargs)
        sizes = [tensor.shape[self._dim] for tensor in tensors_in((args, kwargs)) if tensor.dim() > self._dim]
        if not sizes:
            raise ValueError(f"x holds no tensor with rows in dimension {self._dim}; expected (rows, ...)")
        return Batch(args, kwargs, sizes[0], self._dim)

    def _call(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call; of a batch what the model does not take, such as labels, is left out."""
        if isinstance(x, Call):
            return x.args, x.kwargs
        return call_arguments(self._model, (x,), {})

    def _binds(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def _moved(self, value: Any) -> Any:
        """Return arrays and tables as tensors on the model's device, their numbers in the model's dtype."""
        if isinstance(value, Mapping):
            return {name: self._moved(item) for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._moved, value)) if type(value) in (tuple, list) else value
        if hasattr(value, "to_numpy"):
            value = value.to_numpy()
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiub":
                raise TypeError(
                    f"x holds values of dtype {value.dtype}; expected numbers (encode text and objects first)"
                )
            value = torch.tensor(value)
            value = value.to(self._dtype) if value.is_floating_point() else value
        if not isinstance(value, Tensor):
            if value is None or isinstance(value, (bool, int, float, str)):
                return value
            raise TypeError(
                f"x holds {type(value).__name__}; expected tensors, arrays, a DataFrame, a tuple or mapping of them, "
                "or a DataLoader"
            )
        return value.to(self._device) if self._device is not None else value


def _refuse_nan(batch: Batch, first: int) -> None:
    for x in batch.tensors:
        if not x.is_floating_point() or x.dim() <= batch.dim or x.shape[batch.dim] != batch.rows:
            continue
        bad = x.isnan().movedim(batch.dim, 0).reshape(batch.rows, -1).any(1) if batch.rows else x.new_zeros(0)
        if bad.any():
            rows = [first + int(row) for row in bad.nonzero().flatten()]
            shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
            raise ValueError(f"x has NaN in {len(rows)} rows: {shown}; expected numbers (impute or drop these rows)")


def checked_number(name: str, value: Any, least: int = 1) -> int:
    """Return an integer argument after a check.

    Raises:
        TypeError, ValueError: if the value is no integer, or below the least.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected an integer, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more")
    return value
