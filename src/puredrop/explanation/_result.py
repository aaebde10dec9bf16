"""The base of what a measure returns: a dataclass that prints as text and can be handed to other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, cast

from torch import Tensor

from puredrop._records import Records

__all__ = ["Result", "plain"]


class Result(Records):
    """Abstract: a frozen dataclass of numbers, texts, tensors and other results."""

    _raw: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a number for each row of the data, which `to_dict` leaves out."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the numbers that follow from them; tensors are lists, and None stands for NaN."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        names = [*(field.name for field in fields(cast(Any, self))), *derived]
        return {name: plain(getattr(self, name)) for name in names if name not in self._raw}


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it, which has neither NaN nor infinity."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
