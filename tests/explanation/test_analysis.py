"""The page's parts: what each measures by itself, the words, and the HTML around them."""

import json
import re

import pytest
import torch
from torch import nn

from dropping import relu_net
from puredrop.explanation.analysis import QUESTIONS, Subject, analyse
from puredrop.explanation.averages import averages
from puredrop.explanation.member_visits import _power_of_two, drawing
from puredrop.explanation.unit_over_masks import unit_over_masks
from puredrop.members.prepared import prepare
from puredrop.report.page import render_template
from puredrop.report.section import Section


def net():
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


def test_a_unit_behind_the_first_site_keeps_its_mean_and_not_that_behind_a_relu():
    """4000 masks, five standard errors; the variance is the theory's, within a tenth (its own error is 2 %)."""
    model, x = net(), torch.randn(20, 6)
    found = unit_over_masks(prepare(model, x))
    h = model[1](model[0](x[:1])).detach().double()[0]
    w = model[3].weight.detach().double()[found.unit]
    assert found.path == "3"
    assert found.one_pass == pytest.approx(float(w @ h + model[3].bias.detach()[found.unit]), abs=1e-6)
    assert abs(found.mean - found.one_pass) < 5 * found.standard_error
    assert float(found.values.var()) == pytest.approx(float((w * h).square().sum()), rel=0.1)
    assert found.bias > 5 * found.bias_error
    assert found.rms_bias > 0


def test_chance_is_no_bias():
    """Units that never bend have none: of 40 masks chance alone makes more than twice what is left, at 3.5 deviations."""
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Dropout(0.5), nn.Linear(400, 400)).double()
    nn.init.constant_(model[3].bias, 100)
    x = torch.ones(2, 6, dtype=torch.float64)
    found = unit_over_masks(prepare(model, x), 40)
    h = model[:2](x).detach()[0]
    chance = (model[3].weight.detach().square() @ h.square()).mean().div(40).sqrt()
    assert found.values.min() > 0
    assert found.rms_bias < chance / 2


def test_what_has_no_weights_behind_dropout_has_no_such_unit():
    prepared = prepare(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), torch.randn(20, 6))
    with pytest.raises(ValueError, match="no module with a weight matrix follows"):
        unit_over_masks(prepared)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_averages_are_those_of_members_run_one_by_one(task):
    model, x = net(), torch.randn(30, 6)
    y = torch.randint(3, (30,)) if task == "classification" else torch.randn(30, 3)
    prepared = prepare(model, x, batch_size=20)
    found = averages(prepared, prepared.with_targets(y), task, 8)
    with prepared.instrument() as runner:
        each = torch.cat([runner.members(b, range(8), is_shared=True) for b in prepared.batches], 1).double()
    one = model.eval()(x).detach().double()
    if task == "classification":
        each, one = each.softmax(2), one.softmax(1)

    def score(p):
        return -p[torch.arange(30), y].log() if task == "classification" else (p - y).square().mean(1)

    assert found.numbers == (1, 2, 4, 8)
    assert found.one_pass == pytest.approx(float(score(one).mean()), rel=1e-5)
    assert found.score[3] == pytest.approx(float(score(each.mean(0)).mean()), rel=1e-5)
    pairs = [float(score(each[i : i + 2].mean(0)).mean()) for i in range(0, 8, 2)]
    assert found.score[1] == pytest.approx(sum(pairs) / 4, rel=1e-5)
    assert min(pairs) <= found.low[1] <= found.high[1] <= max(pairs)
    away = score(each.mean(0)) - score(one)
    assert found.difference[2] - found.difference[0] == pytest.approx(1.96 * float(away.std()) / 30**0.5, rel=1e-4)
    assert list(found.risk) == (["one pass"] if task == "classification" else []) + ["8 members"]
    wrong = (each.mean(0).argmax(1) != y).double() if task == "classification" else (each.mean(0) - y).square().mean(1)
    assert found.risk["8 members"][-1] == pytest.approx(float(wrong.mean()), rel=1e-5)


def test_the_drawing_holds_masks_of_the_members_that_the_library_runs():
    model, x = net(), torch.randn(20, 6)
    plan = drawing(prepare(model, x), 3)
    assert [(one["name"], one["units"], one["shown"]) for one in plan["columns"]] == [
        ("inputs", 6, 6), ("2, p=0.5", 24, 9), ("5, p=0.2", 16, 9), ("outputs", 3, 3),
    ]  # fmt: skip
    assert len(plan["members"]) == 24
    prepared, seen = prepare(model, x), []

    def look(module, inputs, output):
        seen.append(inputs[0][0])

    hook = model[6].register_forward_hook(look)
    with prepared.instrument() as runner:
        runner.forward(prepared.batches[0], member=5, is_shared=True)
    hook.remove()
    kept = torch.tensor(plan["members"][5][2]["shown"])
    assert not bool((seen[0][:9] != 0)[~kept].any())  # what the drawing hides is 0 in that member
    means = [sum(m[c]["kept"] for m in plan["members"]) / 24 for c in (1, 2)]
    assert means == pytest.approx([12, 12.8], abs=2.6)  # five standard errors of 24 masks


def test_powers():
    assert _power_of_two(10) == "2^10 = 1,024"
    assert _power_of_two(768) == "2^768 ≈ 10^231"


@pytest.fixture(scope="module")
def told():
    """A trained net and an untrained undropped model; few members, since words are tested here."""
    torch.manual_seed(0)
    x = torch.randn(120, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model, undropped = net(), net()
    undropped[2].p = undropped[5].p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = []
    found = analyse(
        Subject("a net", model.eval(), x, y, "classification", undropped=undropped.eval(), members=16), asked.append
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    return found, asked


def test_every_question_has_a_sentence_a_number_and_a_picture(told):
    found, asked = told
    assert [section.id for section in found.sections] == [
        "network", "division", "reliance", "one-pass", "l2", "noise", "uncertainty", "why",
    ]  # fmt: skip
    assert asked == [section.question for section in found.sections]
    for section in found.sections:
        assert "Not measured" not in section.sentence, section
        assert "nan" not in section.sentence + section.number + section.how, section
        if section.id != "why":
            assert section.number
            assert section.label
            assert section.how
            assert section.figures or section.drawing
        for figure in section.figures:
            for axis in ("xaxis", "yaxis"):
                assert figure.layout[axis]["title"]["text"], section.id
            assert len(figure.alt) > 30
    assert "lands" in found.sections[4].sentence  # SGD on the ridge solution


def test_the_record_is_json_and_comes_back(told):
    found, _ = told
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [Section.from_dict(one).sentence for one in record["sections"]] == [one.sentence for one in found.sections]
    assert {one["id"] for one in record["findings"]} == {"reliance", "one-pass", "l2"}


def test_the_page_has_everything_and_asks_for_nothing(told):
    found, _ = told
    seen = dict.fromkeys(("puredrop", "torch", "python", "machine", "created"), "0")
    page = render_template(
        "explanation.html.j2",
        ("puredrop.explanation",),
        name="<b>",
        facts=["1 < 2"],
        explanation=found,
        command="it",
        environment=seen,
    )
    own = page.split("<script>/**")[0]
    assert not re.search(r"https?://|<link|src=|@import|url\(", own.replace("http://www.w3.org", ""))
    assert "&lt;b&gt;" in own
    for section in found.sections:
        assert f'<section id="{section.id}">' in own
    assert own.count('role="img"') == sum(len(section.figures) for section in found.sections) + 1
    assert own.count("<details>") == len(found.sections) - 1
    assert "2<sup>40</sup>" in own
    shown = json.loads(re.search(r'id="network-masks">(.*?)</script>', own, re.S)[1])
    assert len(shown["members"]) == 24


def test_what_cannot_be_measured_says_why_and_the_rest_is_there():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x)

    found = analyse(
        Subject("s", Sequences(), torch.randn(40, 3), torch.randint(3, (40,)), "classification", members=16)
    )
    by_id = {section.id: section for section in found.sections}
    assert by_id["division"].sentence.startswith("Not measured on this model: no module with a weight matrix")
    assert by_id["l2"].number
    assert "0.5" in by_id["network"].drawing["columns"][1]["name"]


def test_a_regression_and_a_net_with_batchnorm():
    model = nn.Sequential(
        nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
    )
    x = torch.randn(80, 5)
    with torch.no_grad():
        model.train()(x)
    found = analyse(Subject("r", model.eval(), x, torch.randn(80), "regression", members=16), exclude=("noise",))
    ids = [section.id for section in found.sections]
    assert ids == ["network", "division", "reliance", "one-pass", "l2", "uncertainty", "batchnorm", "why"]
    assert "mean squared error" in found.verdict
    assert [one.held for one in found.findings if one.id == "reliance"] == [False]  # no undropped model to compare with


def test_fewer_rows_are_drawn_without_repeats_and_belong_to_each_other():
    x = torch.arange(100.0).unsqueeze(1)
    subject = Subject("s", relu_net(), x, torch.arange(100), "classification", {"a": x}, torch.arange(100)).fewer(30)
    assert len(set(subject.y.tolist())) == 30
    assert torch.equal(subject.x.squeeze(1).long(), subject.y)
    assert torch.equal(subject.train_x["a"].squeeze(1).long(), subject.train_y)
    assert subject.fewer(50) is not None
    assert torch.equal(subject.fewer(50).x, subject.x)


def test_an_exact_penalty_says_exactly():
    model, x = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 2)), torch.randn(30, 4)
    found = analyse(Subject("e", model.eval(), x, torch.randn(30, 2), "regression", members=16), exclude=("noise",))
    by_id = {section.id: section for section in found.sections}
    assert by_id["l2"].sentence.startswith("Exactly, here")
    assert [one.held for one in found.findings if one.id == "l2"] == [True]
    assert set(by_id) <= {question.id for question, _ in QUESTIONS}
