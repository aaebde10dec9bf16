"""Figures that do not know their page: traces and axes as Plotly takes them, and what they show in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puredrop._files import write_page

if TYPE_CHECKING:
    import plotly.graph_objects

__all__ = [
    "COLORS",
    "Figure",
    "axis",
    "band",
    "bars",
    "dots",
    "error_bars",
    "histogram",
    "interval_bars",
    "level",
    "line",
]

COLORS = ("@dropout", "@none", "@members", "@batchwise") * 99
"""Colours of curves that are of one kind, such as one curve for each site."""
_LIGHT = {"none": "#b4530a", "dropout": "#0b62b5", "members": "#0b7a5b", "batchwise": "#8a3ab9", "line": "#c3c9d1"}
"""The colours of a light page; the page's own style sheet has them, and those of a dark one, by the same names."""

Trace = dict[str, Any]
"""A curve, bars or points, as Plotly takes them."""


@dataclass(frozen=True)
class Figure:
    """A figure of a result: it goes into a page, and `plotly()` gives Plotly's own object to show or save.

    Colours are written "@name", a name that the page knows, so that a figure follows the page's light or dark mode.

    Args:
        alt: what the figure shows, in words, with its numbers.
        traces: Plotly's traces; scatter traces where no type is named.
        layout: Plotly's layout: axes with titles and units.

    >>> figure = Figure("loss by step: 3 at 0, 1 at 10", [line([0, 10], [3, 1], "@dropout", "%{y}")])
    >>> figure.plotly().data[0].line.color
    '#0b62b5'
    """

    alt: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def json(self) -> str:
        """The figure as JSON for a script element of a page, in which no "<" may stand."""
        return json.dumps(self._filled()).replace("<", "\\u003c")

    def plotly(self) -> plotly.graph_objects.Figure:
        """Return Plotly's own figure, in the colours of a light page; needs the extra `study`."""
        import plotly.graph_objects as go

        return go.Figure(_painted(self._filled()))

    def show(self) -> None:
        """Open the figure in a browser, or show it in a notebook; needs the extra `study`."""
        self.plotly().show()

    def save(self, path: str | Path) -> None:
        """Write the figure as an HTML file that opens offline; needs the extra `study`.

        Args:
            path: the file, overwritten whole or not at all.
        """
        write_page(Path(path), self.plotly().to_html(include_plotlyjs=True))

    def _filled(self) -> dict[str, Any]:
        return {"data": [{"type": "scatter", **trace} for trace in self.traces], "layout": self.layout}


def _painted(value: Any) -> Any:
    """Replace the names of colours."""
    if isinstance(value, str):
        return _LIGHT[value[1:]] if value.startswith("@") else value
    if isinstance(value, list):
        return [_painted(item) for item in value]
    return {name: _painted(item) for name, item in value.items()} if isinstance(value, dict) else value


def axis(title: str, **options: Any) -> dict[str, Any]:
    """Return an axis with its title, which names the unit, and Plotly's options."""
    return {"title": {"text": title}, **options}


def line(
    x: Sequence[float],
    y: Sequence[float],
    color: str,
    hover: str | None,
    *,
    extra: str = "",
    width: float | None = None,
    dash: str | None = None,
    mode: str = "lines",
    **options: Any,
) -> Trace:
    """Return a curve.

    Args:
        x, y: its points.
        color: "@name" or CSS.
        hover: text of a point under the mouse, Plotly's template; None for Plotly's own.
        extra: second text of the hover box, such as the curve's name.
        width, dash: of the line, pixels and Plotly's name.
        mode: "lines", "lines+markers".
        options: of Plotly's scatter trace, such as `name`, `error_y` or `marker`.
    """
    style = {"color": color, "width": width, "dash": dash}
    return {
        "x": list(x), "y": list(y), "mode": mode, "line": {name: value for name, value in style.items() if value},
        **_hover(hover, extra), **options,
    }  # fmt: skip


def level(ends: Sequence[float], y: float, color: str, name: str, hover: str | None, **options: Any) -> Trace:
    """Return a dashed horizontal line from the first to the last of `ends`."""
    return line([ends[0], ends[-1]], [y, y], color, hover, width=2, dash="dash", name=name, **options)


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> list[Trace]:
    """Return the two edges of a band and the colour between them; it says nothing under the mouse."""
    edge: Trace = {"x": list(x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return [{**edge, "y": list(low)}, {**edge, "y": list(high), "fill": "tonexty", "fillcolor": color}]


def dots(x: Sequence[float], y: Sequence[float], color: str, hover: str, *, extra: str = "", **options: Any) -> Trace:
    """Return points without a line."""
    return {
        "x": list(x), "y": list(y), "mode": "markers", "marker": {"color": color}, **_hover(hover, extra), **options,
    }  # fmt: skip


def bars(
    x: Sequence[Any], y: Sequence[float], color: str | list[str], hover: str, *, extra: str = "", **options: Any
) -> Trace:
    """Return bars, of one colour or a colour for each; `error_y=error_bars(...)` draws their intervals."""
    return {
        "type": "bar", "x": list(x), "y": list(y), "marker": {"color": color}, **_hover(hover, extra), **options,
    }  # fmt: skip


def histogram(x: Sequence[float], color: str, hover: str, *, extra: str = "", **options: Any) -> Trace:
    """Return a histogram of values."""
    return {
        "type": "histogram", "x": list(x), "marker": {"color": color}, **_hover(hover, extra), **options,
    }  # fmt: skip


def error_bars(errors: Sequence[float | None], *, scale: float = 1.0, **options: Any) -> dict[str, Any]:
    """Return bars of 1.96 standard errors, which are 95 % intervals; None stands for a value whose error is unknown.

    Args:
        errors: standard errors.
        scale: of the axis: 100 where it shows per cent of a share.
        options: Plotly's, such as the `width` of the bars' ends.
    """
    return {"array": [None if e is None else 1.96 * scale * e for e in errors], "thickness": 1.5, **options}


def interval_bars(intervals: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return bars from `low` to `high` around `estimate`, as differences have them."""
    return {
        "symmetric": False, "thickness": 1.5, "width": 5,
        "array": [interval["high"] - interval["estimate"] for interval in intervals],
        "arrayminus": [interval["estimate"] - interval["low"] for interval in intervals],
    }  # fmt: skip


def _hover(text: str | None, extra: str) -> Trace:
    return {} if text is None else {"hovertemplate": f"{text}<extra>{extra}</extra>"}
