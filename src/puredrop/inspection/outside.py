"""Generators of Python and NumPy that a model draws from: their states, and the lines that advance them."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import Module

from puredrop.inspection.callers import is_users, place

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Draw", "DrawTracer", "Generators", "outside_positions"]

_NUMPY = str(Path(np.__file__).parent) + os.sep
_STRIDE = 1009
"""The draws from a model's generator that lie between two forwards' draws."""
_MERSENNE_TWISTER = 4 * 625
"""Bytes of the state of NumPy's global generator: 624 words and the position in them."""


class Draw(NamedTuple):
    """A draw from a generator of Python or NumPy.

    Args:
        path: path of the module that ran.
        where: "file:line" in the user's code.
        library: "python" or "numpy".
    """

    path: str
    where: str
    library: str


def outside_positions() -> tuple[Any, ...]:
    """Return the positions of Python's and NumPy's global generators."""
    return _position(random), _position(np.random)


class Generators:
    """The global generators of Python and NumPy, and those that a model's modules or their files hold.

    The modules `random` and `numpy.random` stand for their global generators.

    Args:
        model: the model whose attributes and files are searched.
    """

    def __init__(self, model: Module) -> None:
        kinds = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)  # loaded on first use
        found: dict[int, Any] = {}
        for holder in _holders(model):
            for value in list(holder.values()):
                # By type alone: `isinstance` asks an object for its class, for which a lazy one would be loaded.
                if issubclass(type(value), kinds) and not isinstance(value, random.SystemRandom):
                    found.setdefault(id(value), value)
        self._states = [(generator, _state(generator)) for generator in found.values()]
        self._outside = [random, np.random, *(one for one in found.values() if not isinstance(one, torch.Generator))]

    def start(self, seed: int) -> None:
        """Seed the global generators, and set those that the model holds to where they were, or to a place after it."""
        self.restore()
        for generator, _ in self._states:
            _advance(generator, seed * _STRIDE)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            for generator in torch.cuda.default_generators:
                generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def restore(self) -> None:
        """Restore the state that each generator of the model had at first."""
        for generator, state in self._states:
            _set_state(generator, state)

    def positions(self) -> list[Any]:
        """Return the positions of the generators of Python and NumPy."""
        return [_position(generator) for generator in self._outside]

    def advanced(self, positions: list[Any]) -> list[Any]:
        """Return the generators of Python and NumPy that are no longer at their positions."""
        pairs = zip(self._outside, positions, strict=True)
        return [generator for generator, position in pairs if _position(generator) != position]


def _holders(model: Module) -> list[dict[str, Any]]:
    """Return the attributes of a model's modules, and the globals of the files that define their classes."""
    holders: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        holders[id(vars(module))] = vars(module)
        for kind in type(module).__mro__:
            names = getattr(vars(kind).get("forward"), "__globals__", None)
            if names is not None and is_users(str(names.get("__file__", ""))):
                holders[id(names)] = names
    return list(holders.values())


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _advance(generator: Any, steps: int) -> None:
    """Draw numbers that nobody uses; from one of torch's generators none, which gets another seed instead."""
    if isinstance(generator, torch.Generator):
        if steps:
            generator.manual_seed(generator.initial_seed() + steps)
    elif isinstance(generator, random.Random):
        for _ in range(steps):
            generator.random()
    else:
        generator.random(steps) if isinstance(generator, np.random.Generator) else generator.random_sample(steps)


def _position(generator: Any) -> Any:
    """Return a generator's state as something that compares by value, as an array does not."""
    if generator is np.random:
        behind = np.random.get_bit_generator()
        if isinstance(behind, np.random.MT19937):
            # NumPy takes 60 us to make a list of this state, and a traced forward compares it after each line.
            return ctypes.string_at(behind.ctypes.state_address, _MERSENNE_TWISTER)
    state = _state(generator)
    return state if hasattr(generator, "getstate") else _leaves(state)


def _leaves(state: Any) -> tuple[Any, ...]:
    if isinstance(state, (dict, tuple)):
        parts = state.values() if isinstance(state, dict) else state
        return tuple(leaf for part in parts for leaf in _leaves(part))
    return (state.tobytes(),) if isinstance(state, np.ndarray) else (state,)


class DrawTracer:
    """Trace of the user's lines that notes which of them advance generators.

    Tracing finds draws however their functions were imported, and makes code slow: trace a forward that draws only.

    Args:
        generators: the generators to compare after each line.
        path: function that returns the path of the module that runs.

    Attributes:
        draws: the draws -> the number of times.
    """

    def __init__(self, generators: list[Any], path: Callable[[], str]) -> None:
        self.draws: Counter[Draw] = Counter()
        self._generators = generators
        self._path = path
        self._lines: list[tuple[str, str, int] | None] = [None]

    def __enter__(self) -> Self:
        self._positions = [_position(generator) for generator in self._generators]
        self._earlier = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._earlier)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not is_users(name) or name == random.__file__ or name.startswith(_NUMPY):
            return None
        self._compare()
        self._lines.append(None)
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Note what the line before has drawn, and which line comes next."""
        if event == "exception":
            return self._line
        self._compare()
        if event == "return":
            self._lines.pop()
        else:
            self._lines[-1] = self._path(), frame.f_code.co_filename, frame.f_lineno
        return self._line

    def _compare(self) -> None:
        for number, generator in enumerate(self._generators):
            position = _position(generator)
            if position != self._positions[number]:
                self._positions[number] = position
                line = self._lines[-1]
                if line is not None:
                    path, name, number_of_line = line
                    library = "python" if hasattr(generator, "getstate") else "numpy"
                    self.draws[Draw(path, place(name, number_of_line), library)] += 1
