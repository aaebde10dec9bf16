"""A figure that does not know its page: traces and axes in plain dictionaries, and what it shows in words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects

__all__ = ["Figure"]

_LIGHT = {"none": "#b4530a", "dropout": "#0b62b5", "members": "#0b7a5b", "batchwise": "#8a3ab9", "line": "#c3c9d1"}


@dataclass(frozen=True)
class Figure:
    """Traces and layout as Plotly takes them; "@name" stands for a colour that the page knows by that name.

    Args:
        alt: what the figure shows, in words, with its numbers.
        traces: of Plotly's kinds; scatter where none is named.
        layout: axes with titles and units.
    """

    alt: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def json(self) -> str:
        """For a script element of a page, in which no "<" may stand."""
        return json.dumps(self._filled()).replace("<", "\\u003c")

    def plotly(self) -> plotly.graph_objects.Figure:
        """As Plotly's own figure, in the colours of a light page; needs the extra `study`."""
        import plotly.graph_objects as go

        return go.Figure(_painted(self._filled()))

    def _filled(self) -> dict[str, Any]:
        return {"data": [{"type": "scatter", **trace} for trace in self.traces], "layout": self.layout}


def _painted(value: Any) -> Any:
    if isinstance(value, str):
        return _LIGHT[value[1:]] if value.startswith("@") else value
    if isinstance(value, list):
        return [_painted(one) for one in value]
    return {name: _painted(one) for name, one in value.items()} if isinstance(value, dict) else value
