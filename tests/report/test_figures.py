"""The builders of figures: Plotly takes what they make, and the numbers are those that were given."""

import json

import pytest

from puredrop.report.figures import (
    Figure,
    axis,
    band,
    bars,
    dots,
    error_bars,
    histogram,
    interval_bars,
    level,
    line,
)  # fmt: skip

X, Y = [0, 1, 2], [3.0, 1.0, 2.0]


def test_plotly_takes_every_trace_and_colours_are_those_of_a_light_page():
    pytest.importorskip("plotly")
    traces = [
        line(X, Y, "@dropout", "%{y}", extra="curve", width=2.5, dash="dot", mode="lines+markers", name="a"),
        level(X, 1.5, "@none", "level", None),
        *band(X, Y, [4.0, 4.0, 4.0], "@members"),
        dots(X, Y, "@members", "%{y}"),
        bars(["a", "b", "c"], Y, ["@none", "@dropout", "@dropout"], "%{y}", error_y=error_bars([0.1, None, 0.2])),
        histogram(Y, "@batchwise", "%{x}"),
    ]
    figure = Figure("alt", traces, {"xaxis": axis("x (steps)", type="log"), "yaxis": axis("y")}).plotly()
    assert [trace.type for trace in figure.data] == [*["scatter"] * 5, "bar", "histogram"]
    assert (figure.data[0].line.color, figure.data[0].line.width, figure.data[0].line.dash) == ("#0b62b5", 2.5, "dot")
    assert figure.data[0].hovertemplate == "%{y}<extra>curve</extra>"
    assert (list(figure.data[1].x), list(figure.data[1].y)) == ([0, 2], [1.5, 1.5])
    assert figure.data[1].hovertemplate is None
    assert [figure.data[i].fill for i in (2, 3)] == [None, "tonexty"]
    assert list(figure.data[5].marker.color) == ["#b4530a", "#0b62b5", "#0b62b5"]
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis.type) == ("x (steps)", "log")


def test_bars_of_errors_are_95_percent_intervals():
    assert error_bars([0.5, None], scale=100, width=4) == {"array": [98.0, None], "thickness": 1.5, "width": 4}
    found = interval_bars([{"low": -1.0, "estimate": 1.0, "high": 4.0}])
    assert (found["array"], found["arrayminus"], found["symmetric"]) == ([3.0], [2.0], False)


def test_no_tag_can_end_the_script_that_holds_a_figure():
    figure = Figure("alt", [line(X, Y, "@none", "</script>")])
    assert "<" not in figure.json
    assert json.loads(figure.json)["data"][0]["hovertemplate"].startswith("</script>")


def test_a_figure_is_saved_whole(tmp_path):
    figure = Figure("alt", [line([0, 1], [2, 3], "@dropout", "%{y}")])
    figure.save(tmp_path / "figure.html")
    text = (tmp_path / "figure.html").read_text()
    assert "Plotly.newPlot" in text
    assert "https://cdn" not in text.split("Plotly.newPlot")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["figure.html"]
