"""Reports as dictionaries, JSON and data frames."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

__all__ = ["Records"]


class Records(ABC):
    """Mixin for a report that can be handed to other programs."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dictionaries, lists, numbers and texts."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary for each row of the report, all with the same keys."""

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON.

        Args:
            indent: spaces for each level; None for a single line.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def frame(self) -> Any:
        """Return the rows of the report as a pandas DataFrame.

        Raises:
            ModuleNotFoundError: if pandas is not installed; the message names the extra that brings it.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'frame() needs pandas ({error}); pip install "puredrop[study]", or use to_dict()'
            ) from error
        return pd.DataFrame(self.records())
