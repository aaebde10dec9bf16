"""Work grows in proportion to the model: doubled, a model takes twice as many steps in our code, not four times."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import puredrop
from puredrop.inspection import outermost
from puredrop.inspection.duplicate import duplicate
from puredrop.thinning import find_chains

_PACKAGE = Path(puredrop.__file__).parent


def _steps(work: Callable[[], object], file: str) -> int:
    """Return the number of lines of one of our files that a function runs, each pass of a loop counted."""
    count, name = 0, str(_PACKAGE / file)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != name:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


class _Unused(nn.Module):
    """A forward of functional dropout, beside layers that it never calls."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Dropout(0.1) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        for _ in self.layers:
            x = nn.functional.dropout(x, 0.1, self.training)
        return x


def _sequence(number: int) -> nn.Sequential:
    layers = [layer for _ in range(number) for layer in (nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.1))]
    return nn.Sequential(*layers, nn.Linear(2, 2))


def _stuck_paths(number: int) -> list[str]:
    return [path for i in range(number) for path in (f"blocks.{i}", f"blocks.{i}.drop")]


_x = torch.randn(2, 2)
_WORK: dict[str, tuple[Callable[[int], Any], Callable[[Any], object]]] = {
    "inspection/__init__.py": (_Unused, lambda model: puredrop.sites(model, _x)),
    "linting/__init__.py": (_sequence, lambda model: puredrop.check(model, _x)),
    "conversion.py": (_sequence, puredrop.convert),
    "thinning/chains.py": (_Unused, find_chains),
    "thinning/__init__.py": (_sequence, puredrop.batchwise),
    "members/survey.py": (_sequence, lambda model: puredrop.DropoutEnsemble(model).survey(_x)),
}


@pytest.mark.parametrize("file", _WORK)
def test_twice_the_modules_take_twice_the_steps(file: str) -> None:
    make, work = _WORK[file]
    few, many = (_steps(functools.partial(work, make(number)), file) for number in (15, 30))
    assert many < 2.3 * few, f"{few} steps, then {many}"


def test_outermost_paths_take_steps_in_proportion() -> None:
    few, many = (
        _steps(functools.partial(outermost, _stuck_paths(number)), "inspection/listing.py") for number in (50, 100)
    )
    assert many < 2.3 * few, f"{few} steps, then {many}"


class _Compared(nn.Dropout):
    """A layer that counts how often it is compared with others."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        _Compared.compared += 1
        return self is other

    __hash__ = nn.Module.__hash__


def test_pinning_compares_no_layer_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Compared, "compared", 0)
    puredrop.reproducible(nn.Sequential(*(_Compared(0.1) for _ in range(50))))
    assert _Compared.compared < 200


def test_a_duplicate_of_very_many_modules_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["puredrop.inspection.duplicate"], "_LONGEST", 10)
    model = nn.Sequential(*(nn.Identity() for _ in range(11)))
    assert list(duplicate(model).children())[10] is not model[10]


def test_an_error_names_a_few_of_many_layers() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Dropout(0.1) for _ in range(100))

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"never calls: layers\.0, .*, layers\.5 and 94 more$"):
        puredrop.DropoutEnsemble(Unused()).predict(_x)
    with pytest.raises(ValueError, match=r"layers\.5: the forward does not call it and 94 more$"):
        puredrop.batchwise(Unused())
