"""Names that users of other libraries try on an ensemble, and what to type instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch.nn import Module

__all__ = ["GuessedNames", "PowerOfTwo"]

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


class GuessedNames(ABC):
    """Abstract: an ensemble whose errors name the call for attributes and operations that it does not have."""

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
