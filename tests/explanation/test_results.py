"""Results of `puredrop.explain` print as text, and are handed to other programs as a dictionary, JSON and a table."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import puredrop
from puredrop import explain
from puredrop._records import Records
from puredrop.explanation._result import Result
from puredrop.explanation.averages import averages
from puredrop.explanation.unit_over_masks import unit_over_masks
from puredrop.linting import Report
from puredrop.members.prepared import prepare
from puredrop.report.figures import Figure


def subclasses(kind):
    return {kind, *(other for child in kind.__subclasses__() for other in subclasses(child))}


@pytest.fixture(scope="module")
def found():
    """One result of each class, by its name."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.2),
        nn.Linear(6, 3),
    )
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    reliance = explain.coadaptation(net, x, y, members=16, orders=2)
    cost = explain.penalty(net, x, y, "cross_entropy", members=8, probes=4, per_site=True)
    shift = explain.variance_shift(net, x, members=4, probes=4)
    gap = explain.weight_scaling_gap(net, x, members=16)
    solved = explain.ridge(x, torch.randn(40, 2), 0.3)
    prepared = prepare(net, x)
    results = [
        reliance, reliance.curves["random"], cost, cost.sites[0], shift, shift.layers[0], gap, gap.of_outputs,
        gap.leave_one_out, solved, solved.descend(20),
        explain.margins(torch.rand(9, 4), torch.rand(4), 0.4),
        explain.gradient_noise(net, x, y, "cross_entropy", batches=3, draws=2, probes=2),
        explain.l2_strength(net, x, y, "cross_entropy", probes=2),
        explain.member_visits(net, x, draws=50, members=4),
        explain(net, x, y, members=16, exclude=("noise", "l2", "reliance", "one-pass", "batchnorm", "uncertainty")),
        averages(prepared, prepared.with_targets(prepared.targets(y)), "classification", 16),
        unit_over_masks(prepared, 16),
    ]  # fmt: skip
    return {type(result).__name__: result for result in results}


def test_every_result_is_here(found):
    names = {kind.__name__ for kind in subclasses(Result)} - {"Result"}
    assert names | {"Explanation"} == set(found)
    public = {name for name in dir(puredrop.explain) if isinstance(getattr(puredrop.explain, name), type)}
    assert {name for name in public if not name.startswith("_")} <= set(found)


def test_a_result_prints_as_its_text(found):
    for name, result in found.items():
        assert repr(result) == str(result), name
        assert name not in repr(result)
        assert "tensor(" not in repr(result)
        assert 10 < len(repr(result)) < 1500 or name == "Distance", (name, repr(result))


def test_a_result_is_json(found):
    for name, result in found.items():
        json.loads(result.to_json(), parse_constant=pytest.fail)
        assert json.loads(result.to_json(None)) == json.loads(json.dumps(result.to_dict())), name
    cost = found["Penalty"]
    record = cost.to_dict()
    assert record["ratio"] == cost.ratio
    assert [site["path"] for site in record["sites"]] == ["2", "5"]
    assert record["sites"][0]["units"] == cost.sites[0].units.tolist()
    assert "x" not in found["Ridge"].to_dict()
    assert "tables" not in found["Curve"].to_dict()


def test_a_number_that_is_not_known_is_none_in_json(found):
    cost = dataclasses.replace(found["Penalty"], measured=0.0, standard_error=math.inf)
    record = json.loads(cost.to_json(), parse_constant=pytest.fail)
    assert (record["ratio"], record["standard_error"]) == (None, None)
    analysis = found["Explanation"]
    first = dataclasses.replace(analysis.sections[0], figures=(Figure("", [{"y": [1.5, math.nan]}], {}),))
    analysis = dataclasses.replace(analysis, sections=(first,))
    record = json.loads(analysis.to_json(), parse_constant=pytest.fail)
    assert record["sections"][0]["figures"][0]["traces"] == [{"y": [1.5, None]}]


def test_a_result_is_a_table(found):
    for name, result in found.items():
        frame = result.frame()
        assert len(frame) == len(result.records()) > 0, name
        assert list(frame.columns) == list(result.columns()) == list(result.records()[0]), name
    frame = found["Penalty"].frame().set_index("path")
    assert frame.loc["5", "measured"] == found["Penalty"].sites[1].measured
    frame = found["MemberVisits"].frame()
    assert frame["kept"][3] == found["MemberVisits"].keep["2"][3]
    assert list(frame["expected"].unique()) == [0.5, 0.8]
    solved, frame = found["Ridge"], found["Ridge"].frame()
    row = frame[(frame["feature"] == 2) & (frame["target"] == 1)].iloc[0]
    assert (row["weight"], row["plain"]) == (float(solved.weights[2, 1]), float(solved.plain[2, 1]))
    assert row["strength"] == float(solved.strengths[2])
    frame = found["Coadaptation"].frame()
    curve = found["Coadaptation"].curves["noise"]
    assert tuple(frame[frame["kind"] == "noise"]["score"]) == curve.score
    frame = found["VarianceShift"].frame()
    assert list(frame["measured"]) == found["VarianceShift"].layers[0].measured.tolist()


def test_a_table_without_rows_has_its_columns(found):
    for name, emptied in {
        "Penalty": {"sites": ()}, "VarianceShift": {"layers": ()}, "MemberVisits": {"keep": {}},
        "L2Strength": {"layers": {}}, "Coadaptation": {"curves": {}}, "Explanation": {"sections": ()},
    }.items():  # fmt: skip
        frame = dataclasses.replace(found[name], **emptied).frame()
        assert (len(frame), list(frame.columns)) == (0, list(found[name].columns())), name
    linear = nn.Linear(2, 2)
    for report, names in (
        (puredrop.convert(linear, report=True)[1], ["path", "old", "new", "reason"]),
        (puredrop.sites(linear, torch.randn(1, 2)), ["path", "kind", "p", "shape", "where", "uses", "in_eval", "note"]),
        (Report(()), [*(field.name for field in dataclasses.fields(puredrop.linting.Finding)), "severity", "message"]),
    ):
        frame = report.frame()
        assert len(frame) == 0
        assert list(frame.columns)[: len(names)] == names


def test_no_report_prints_as_a_dataclass():
    for kind in subclasses(Records):
        assert kind.__repr__ is Records.__repr__, kind
