"""Reports as text, dictionaries, JSON and data frames."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

__all__ = ["Records"]


class Records(ABC):
    """Mixin for a report that prints as text and can be handed to other programs.

    A dataclass that inherits it is declared with `repr=False`, so that its repr is the text.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    def __repr__(self) -> str:
        return str(self)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dictionaries, lists, numbers and texts."""

    @abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame` by name, all of the same length."""

    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary for each row of the report, all with the same keys."""
        columns = self.columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON.

        Args:
            indent: spaces for each level; None for a single line.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def frame(self) -> Any:
        """Return the rows of the report as a pandas DataFrame; without rows it has its columns.

        Raises:
            ModuleNotFoundError: if pandas is not installed; the message names the extra that brings it.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'frame() needs pandas ({error}); pip install "puredrop[study]", or use to_dict()'
            ) from error
        return pd.DataFrame(self.columns())
