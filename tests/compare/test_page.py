"""The page and the sentences on it: no claim without an interval that allows it, nothing from outside, nothing unescaped."""

import copy
import io
import json
import re
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from puredrop.cli.compare import execute, summary
from puredrop.compare import page as compare_page
from puredrop.compare.wording import findings, quantities, verdict
from puredrop.report import page as _page
from puredrop.report.section import Section


def difference(estimate, low, high, detectable=0.02):
    return {
        "estimate": estimate, "low": low, "high": high, "detectable": detectable,
        "standard_error": 0.01, "degrees_of_freedom": 9.0, "found": low > 0 or high < 0,
    }  # fmt: skip


def figure(*values):
    return {"mean": sum(values) / len(values), "per_seed": list(values)}


def curve():
    return {"area": figure(0.001, 0.002), "coverage": [0.25, 0.5, 1.0], "error": [0.0, 0.01, 0.025]}


def arm(nll, **more):
    record = {
        "error": figure(0.02, 0.03), "nll": figure(nll, nll + 0.01), "calibration_error": figure(0.01, 0.02),
        "training_nll": figure(0.01, 0.01), "gap": figure(nll - 0.01, nll), "weight_norms": {"0": figure(3.0, 4.0)},
        "selective_prediction": curve(), "mc": None, "epochs": 2, "best_epoch": [1, 2], "seconds_per_epoch": 0.5,
        "history": {"training_loss": [[1.0, 1.0]] * 2, "validation_loss": [[0.5, 0.6], [0.4, 0.55]]},
    }  # fmt: skip
    return {**record, **more}


@pytest.fixture
def results():
    mc = {key: figure(0.1, 0.2) for key in ("error", "nll", "calibration_error")} | {"selective_prediction": curve()}
    return {
        "format": 2,
        "name": "digits",
        "notes": [],
        "identity": {"data": "digits", "data_digest": "0", "hidden": [8, 4], "rates": [0.5, 0.3], "input_rate": 0.0,
                     "epochs": 2, "seeds": 2,
            "task": "classification",
            "target": None,
            "group": None,
            "time": None,
            "split_seed": 0,
            "model": None, "rows": None, "torch": "2", "arms": ["none", "dropout"], "groups": None, "sweep": []},
        "created": "2026-01-01T00:00:00+00:00",
        "environment": {"puredrop": "0", "torch": "2", "numpy": "2", "python": "3", "machine": "m", "threads": 2},
        "rows": {"train": 10, "validation": 2, "test": 5},
        "arms": {"none": arm(0.10), "dropout": arm(0.08, mc=mc)},
        "differences": {
            "nll": difference(-0.02, -0.03, -0.01), "error": difference(-0.001, -0.004, 0.002, 0.005),
            "gap": difference(0.02, 0.01, 0.03), "mc_nll": difference(0.01, 0.005, 0.015), "mc_error": difference(0, -1, 1),
            "mc_area": difference(0.001, -0.002, 0.004, 0.007),
        },
        "members_needed": {
            "members": [1, 25, 50], "nll": [figure(0.3, 0.3), figure(0.16, 0.16), figure(0.1, 0.2)], "enough": 25,
            "to_one_pass": [difference(0.1, 0.05, 0.15), difference(0.02, 0.01, 0.03), difference(0.01, -0.01, 0.03)],
            "excess": [difference(0.15, 0.1, 0.2), difference(0.001, 0.0005, 0.0015)],
        },
        "explanation": {
            "verdict": "", "skipped": {},
            "findings": [{"id": "l2", "held": False, "text": "“it acts like L2”: .54 of it"}],
            "sections": [Section("l2", "Does it act like L2?", "Up to a factor.", "0.54", "ratio").to_dict()],
        },
        "sweep": None,
    }  # fmt: skip


def test_a_difference_is_claimed_only_where_its_interval_excludes_zero(results):
    claims = {key: q.claim(results) for key, q in quantities(results).items()}
    assert claims == {
        "nll": "dropout is better",
        "error": "no difference found; this run could have detected ≥ 0.50",
        "gap": "dropout widens it",
        "mc_nll": "one pass is better",
        "mc_error": "no difference found; this run could have detected ≥ 2.00",
        "mc_area": "no difference found; this run could have detected ≥ 0.700",
    }
    results["differences"]["nll"] = difference(-0.02, -0.05, 0.01)
    results["differences"]["mc_nll"] = difference(-0.01, -0.02, -0.005)
    assert quantities(results)["nll"].claim(results) == "no difference found; this run could have detected ≥ 0.0200"
    assert quantities(results)["mc_nll"].claim(results) == "50 members are better"


@pytest.mark.parametrize(
    ("nll", "error", "expected"),
    [
        (-1, 0, "dropout lowered the test NLL from 0.1050 to 0.0850, but made no difference we could find to the test error "
                "(2.50 % and 2.50 %; it could have shown 2.00 points)."),
        (1, 1, "dropout raised the test NLL from 0.1050 to 0.0850, and raised the test error from 2.50 % to 2.50 %."),
        (0, -1, "dropout made no difference we could find to the test NLL (0.1050 and 0.0850; it could have shown 0.0200), "
                "but lowered the test error from 2.50 % to 2.50 %."),
        (0, 0, "dropout made no difference we could find to the test NLL (0.1050 and 0.0850; it could have shown 0.0200), "
               "nor to the test error (2.50 %"),
    ],
)  # fmt: skip
def test_the_verdict(results, nll, error, expected):
    for key, sign in (("nll", nll), ("error", error)):
        results["differences"][key] = difference(0.1 * sign, 0.1 * sign - 0.05, 0.1 * sign + 0.05)
    assert verdict(results).startswith("On digits, over 2 seeds, " + expected)


def test_the_page_is_self_contained_and_shows_the_numbers(results):
    page = compare_page.render(results)
    own = page.replace(get_plotlyjs(), "")
    assert len(own) < len(page)
    assert not re.search(r"https?://|<link|src=|@import|url\(", own)
    assert verdict(results) in own.replace("\N{NO-BREAK SPACE}", " ")
    for text in ("0.1050 → 0.0850", "−0.0200 [−0.0300, −0.0100]", "dropout is better", "2.50 ± 0.71 %"):
        assert text in own
    assert own.count("<details>") >= 5
    assert own.count('role="img"') == 8 + 6
    assert own.index("Does it act like L2?") < own.index("What did it cost?") < own.index("Both arms in figures")


@pytest.fixture
def shared(results):
    """With the third arm."""
    results["identity"] |= {"arms": ["none", "dropout", "batchwise"], "groups": 4}
    results["arms"]["batchwise"] = arm(0.09, seconds_per_epoch=0.2)
    results["differences"] |= {"batchwise_nll": difference(0.01, 0.002, 0.02), "batchwise_error": difference(0, -1, 1)}
    return results


def test_the_arm_batchwise(shared):
    page = compare_page.render(shared)
    for text in (
        "Faster, with masks that groups share?",
        "NLL, masks shared by 4 groups of a batch against a mask for each row:</strong> +0.0100 [+0.0020, +0.0200]. "
        "Shared masks are worse.",
        '<th class="batchwise">batchwise</th>',
        "An epoch took 0.20 s",
        "--arms none,dropout,batchwise --groups 4",
        "of 8 such",
    ):
        assert text in page, text
    found = dict(re.findall(r'<script type="application/json" id="([\w-]+)-data">(.*?)</script>', page, re.S))
    assert set(found) == {
        "nll", "error", "gap", "mc_nll", "curves", "cost-1", "batchwise_error", "members", "risk_coverage"
    }  # fmt: skip
    clock = json.loads(found["cost-1"])
    assert clock["layout"]["xaxis"]["title"]["text"] == "seconds of training, all seeds"
    assert [trace["x"] for trace in clock["data"]] == [[0.5, 1.0], [0.5, 1.0], [0.2, 0.4], [0, 1.0]]
    assert clock["data"][3]["y"] == pytest.approx([0.475, 0.475])  # the lowest loss of the arm without dropout
    assert "0.4750: without dropout 1.0 s, with dropout 1.0 s, batchwise 0.4 s" in page
    assert [trace["name"] for trace in clock["data"]][2] == "batchwise, test error 2.50 %"
    assert verdict(shared) == verdict({**shared, "arms": {k: shared["arms"][k] for k in ("none", "dropout")}})


@pytest.fixture
def several(results):
    """With five networks."""
    results["identity"]["arms"] = ["none", "dropout", "networks"]
    results["arms"]["networks"] = arm(0.07, seconds_per_epoch=2.0)
    results["differences"] |= {f"networks_{key}": difference(-0.02, -0.03, -0.01) for key in ("nll", "error", "area")}
    return results


def test_the_arm_networks(several):
    page = compare_page.render(several)
    for text in (
        "NLL, five networks without dropout against 50 members:</strong> −0.0200 [−0.0300, −0.0100]. "
        "Five networks are better.",
        "error over shares kept, five networks without dropout against 50 members:</strong> −2.000 [−3.000, −1.000] points",
        '<th class="networks">five networks</th>',
        "cost\n2.00 s an epoch on top of 0.50 s",
        "--arms none,dropout,networks --epochs",
        "From 25 members on the NLL is within 0.002 nats of that of 50.",
        "infinitely many would be about 0.0010 nats below 50",
    ):
        assert text in page, text
    found = {
        name: json.loads(text)
        for name, text in re.findall(r'<script type="application/json" id="(\w+)-data">(.*?)</script>', page, re.S)
    }
    drawn = {trace["name"]: trace for trace in found["members"]["data"]}
    assert list(drawn) == ["mean of members", "one pass", "five networks"]
    assert drawn["mean of members"]["y"] == [0.1, 0.02, 0.01]
    assert drawn["mean of members"]["error_y"]["array"] == pytest.approx([0.05, 0.01, 0.02])
    assert drawn["five networks"]["y"] == pytest.approx([-0.01, -0.01])
    names = [trace["name"] for trace in found["risk_coverage"]["data"]]
    assert names == ["without dropout", "one pass", "50 members", "five networks"]
    assert found["risk_coverage"]["data"][0]["y"] == [0.0, 1.0, 2.5]
    assert [trace["name"] for trace in found["curves"]["data"] if "name" in trace] == [
        "without dropout",
        "with dropout",
    ]


def test_fewer_members_than_all_may_not_be_enough(results):
    results["members_needed"]["enough"] = None
    assert "Fewer than 50 members were not shown to come within 0.002 nats of the NLL of 50." in compare_page.render(
        results
    )


def test_one_pass_of_a_regression_has_no_risk_coverage_curve(results):
    results["identity"]["task"] = "regression"
    for record in results["arms"].values():
        record["selective_prediction"] = record["calibration_error"] = None
    results["differences"].pop("mc_area")
    page = compare_page.render(results)
    data = json.loads(re.search(r'id="risk_coverage-data">(.*?)</script>', page, re.S)[1])["data"]
    assert [trace["name"] for trace in data] == ["50 members"]
    assert "one pass is as sure of any row as of another" in page


def test_every_figure_is_json_with_titles_units_and_the_values_measured(results):
    page = compare_page.render(results)
    found = dict(re.findall(r'<script type="application/json" id="(\w+)-data">(.*?)</script>', page, re.S))
    assert set(found) == {"nll", "error", "gap", "mc_nll", "curves", "members", "risk_coverage"}
    assert "<" not in "".join(found.values())  # nothing in a figure can end the script element it stands in
    figures = {name: json.loads(text) for name, text in found.items()}
    for name, drawn in figures.items():
        assert re.search(r"\((nats|%|log scale)\)", drawn["layout"]["yaxis"]["title"]["text"]), name
    assert [trace["y"] for trace in figures["error"]["data"][:2]] == [[2, 2], [3, 3]]
    assert [trace["y"] for trace in figures["nll"]["data"][:2]] == [
        pytest.approx([0.10, 0.08]),
        pytest.approx([0.11, 0.09]),
    ]
    means = [trace["y"] for trace in figures["curves"]["data"] if "name" in trace]
    assert means == [pytest.approx([0.55, 0.475])] * 2
    style = (Path(_page.__file__).parent / "templates/style.css").read_text()
    for color in set(re.findall(r'"@([\w-]+)"', "".join(found.values()))):
        assert style.count(f"--{color}:") == 2, f"{color} must have a light and a dark value"


def test_the_closing_paragraph_says_of_members_what_the_interval_allows(results):
    assert [(one.id, one.held) for one in findings(results)] == [("one-pass", False), ("l2", False)]
    results["differences"]["mc_nll"] = difference(0.01, -0.01, 0.03)
    held = findings(results)[0]
    assert held.held
    assert "no difference found" in held.text
    page = compare_page.render(results)
    assert "<strong>What held:</strong> “one pass averages 2<sup>n</sup> networks”" in page
    assert "<strong>What did not:</strong> “it acts like L2”: .54 of it." in page


def test_an_arm_that_never_reaches_the_target_says_so(results):
    results["arms"]["dropout"]["history"]["validation_loss"] = [[0.9, 0.9], [0.8, 0.8]]
    page = compare_page.render(results)
    assert "without dropout 1.0 s, with dropout never" in page


def test_a_network_that_cannot_be_looked_into_says_why(results):
    results["explanation"] = {
        "verdict": "",
        "findings": [],
        "sections": [],
        "skipped": {"model": "no dropout is reached"},
    }
    assert "could not be analysed: no dropout is reached." in compare_page.render(results)


def test_text_from_the_results_is_escaped(results):
    results["name"] = "</script><script>alert(1)</script>"
    page = compare_page.render(results)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("width", [80, 120])
def test_five_lines_that_fit_the_terminal(results, width):
    stream = io.StringIO()
    summary(
        results,
        Path("runs/digits/report.html"),
        Console(file=stream, width=width, force_terminal=True, color_system=None),
    )
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= width
    assert lines[1].endswith("≥ 0.50")
    assert lines[4].split() == ["page", "runs/digits/report.html"]


def test_progress_shows_the_time_left_on_a_terminal_and_nothing_elsewhere(results):
    class Finished:
        epochs, arms, trained = 5, {}, ("none", "dropout")

        def execute(self, on_epoch, on_measure):
            from puredrop.compare.training import Arm

            state = Arm(True, {}, {}, epoch=2, best_epoch=[1, 2], validation_loss=[[0.5, 0.6], [0.4, 0.7]])
            on_epoch("none", copy.copy(state))
            on_measure()
            return results

    for is_terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, width=120, force_terminal=is_terminal)
        assert execute(Finished(), console) is results
        assert ("2/5" in stream.getvalue()) == is_terminal
        assert ("validation loss 0.5000" in stream.getvalue()) == is_terminal
        assert ("measuring: one pass" in stream.getvalue()) == is_terminal
        assert bool(stream.getvalue()) == is_terminal
