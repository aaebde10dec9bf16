"""Pages: self-contained HTML from templates, figures and drawings; needs the extra `study`."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

__all__ = ["render_template"]

_WIDTH, _STEP, _TOP, _FOOT, _LETTER = 720, 30, 24, 52, 11


def render_template(template: str, packages: tuple[str, ...] = (), **values: Any) -> str:
    """Return a page as HTML that needs no network.

    Args:
        template: name of the file, in the folder `templates` of one of `packages` or of this package.
        packages: dotted names of packages with templates of their own, which come first.
        values: variables of the template.
    """
    loaders = [jinja2.PackageLoader(name, "templates") for name in (*packages, "puredrop.report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"plan": _plan, "power": _power}
    texts = {
        name: Markup(loaders[-1].get_source(environment, file)[0]) for name, file in
        (("style", "style.css"), ("script", "page.js"))
    }  # fmt: skip
    return environment.get_template(template).render(**texts, plotly=Markup(get_plotlyjs()), **values)


def _power(text: str) -> Markup:
    """Write powers of 2 and 10 with a raised exponent."""
    return Markup(re.sub(r"\b(2|10)\^(\d+|n)", r"\1<sup>\2</sup>", str(escape(text))))


def _plan(drawing: dict[str, Any]) -> dict[str, Any]:
    """Lay out the units and edges of a drawing, in pixels."""
    columns = drawing["columns"]
    most = max(column["shown"] for column in columns)
    height = _TOP + most * _STEP + _FOOT
    gap = (_WIDTH - 120) / (len(columns) - 1)
    units: list[list[dict[str, Any]]] = []
    for c, column in enumerate(columns):
        top = _TOP + (most - column["shown"]) * _STEP / 2
        units.append(
            [
                {"x": round(60 + c * gap), "y": round(top + u * _STEP), "name": f"{c}.{u}"}
                for u in range(column["shown"])
            ]
        )
    edges = [
        {"x1": a["x"], "y1": a["y"], "x2": b["x"], "y2": b["y"], "from": a["name"], "to": b["name"]}
        for before, after in itertools.pairwise(units)
        for a in before
        for b in after
    ]
    heads = [
        {"x": round(60 + c * gap), "name": _short(column["name"], int(gap / _LETTER)), "count": _count(column)}
        for c, column in enumerate(columns)
    ]
    masks = {"members": drawing["members"], "units": [column["units"] for column in columns]}
    return {
        "width": _WIDTH, "height": height, "edges": edges, "units": [unit for column in units for unit in column],
        "columns": heads, "json": json.dumps(masks).replace("<", "\\u003c"),
    }  # fmt: skip


def _short(name: str, length: int) -> str:
    """Return the end of a long path, its most telling part."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _count(column: dict[str, Any]) -> str:
    if column["shown"] == column["units"]:
        return f"{column['units']} units"
    return f"{column['shown']} of {column['units']:,}"
