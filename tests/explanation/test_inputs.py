"""What `explain` can be given: rows and targets in all shapes, losses by name, classes in any dimension, the call itself."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dropping import relu_net
from puredrop import explain
from puredrop.members import prepared


@pytest.fixture
def data():
    return torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))


class Named(nn.Module):
    """A model that takes its rows by name and returns a mapping."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input_ids):
        return {"logits": self.net(input_ids)}


class Tokens(nn.Module):
    """A language model: outputs (rows, time, classes)."""

    def __init__(self, classes=7):
        super().__init__()
        self.embed, self.drop, self.last = nn.Embedding(classes, 8), nn.Dropout(0.3), nn.Linear(8, classes)

    def forward(self, ids):
        return self.last(self.drop(self.embed(ids)))


class Turned(Tokens):
    """The same with outputs (rows, classes, time)."""

    def forward(self, ids):
        return super().forward(ids).movedim(-1, 1)


FORMS = {
    "a loader": lambda x, y: (DataLoader(TensorDataset(x, y), 16),),
    "a list of batches": lambda x, y: ([(x[:30], y[:30]), (x[30:], y[30:])],),
    "a batch": lambda x, y: ((x, y),),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "tables": lambda x, y: (pd.DataFrame(x.numpy()), pd.Series(y.numpy())),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_targets_in_any_form_are_the_same_data(form, data):
    net, (x, y) = relu_net(), data
    given = FORMS[form](x, y)
    found = explain.penalty(net, *given, loss="cross_entropy")
    assert str(found) == str(explain.penalty(net, x, y, F.cross_entropy))
    assert str(explain.coadaptation(net, *given, members=16)) == str(explain.coadaptation(net, x, y, members=16))
    noise = explain.gradient_noise(net, *given, loss="cross_entropy", draws=2, batches=3)
    assert noise.batch == 20  # half of the rows
    assert str(explain.member_visits(net, given[0], draws=50)) == str(explain.member_visits(net, x, draws=50))


@pytest.mark.parametrize("split", [False, True])
def test_targets_in_a_mapping_have_the_usual_names(split, data):
    net, (x, y) = relu_net(), data
    batch = {"input_ids": x, "labels": y}
    given = [{k: v[:30] for k, v in batch.items()}, {k: v[30:] for k, v in batch.items()}] if split else batch
    assert str(explain.penalty(Named(net), given, loss="cross_entropy")) == str(
        explain.penalty(net, x, y, "cross_entropy")
    ).replace("  2:", "  net.2:")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "y is missing, and x is a Tensor; pass y, a batch"),
        ((F.cross_entropy,), {}, "loss is missing; where x holds the targets, pass the loss as loss="),
        ((None, "nll"), {}, "loss is 'nll'; expected 'cross_entropy'"),
        ((None, 3), {}, "loss is 3; expected 'cross_entropy'"),
        ((), {"loss": "mse_loss"}, "y is missing, and x is a Tensor; pass y, a batch"),
    ],
)
def test_what_is_missing_is_named(arguments, options, message, data):
    with pytest.raises((TypeError, ValueError), match=message):
        explain.penalty(relu_net(), data[0], *arguments, **options)


def test_loaders_without_targets_are_refused(data):
    x, _ = data
    for given, message in (
        ([], "x gives a list; expected batches"),
        (DataLoader(TensorDataset(x), 16), r"expected batches \(x, y\)"),
        ({"input_ids": x}, "x has input_ids; expected targets as 'labels'"),
        (iter(()), "a loader without batches"),
    ):
        with pytest.raises(ValueError, match=message):
            explain.penalty(relu_net(), given, loss="cross_entropy")


def test_classes_in_the_last_dimension_are_those_of_a_model_that_has_them_in_the_first():
    net, turned, ids, y = Tokens(), Turned(), torch.randint(7, (12, 5)), torch.randint(7, (12, 5))
    turned.load_state_dict(net.state_dict())
    for measure in (explain.penalty, explain.l2_strength):
        a, b = (measure(model, ids, y, "cross_entropy", **more) for model, more in ((net, {}), (turned, {})))
        assert str(a) == str(b)
        assert str(a) == str(measure(net, ids, y, "cross_entropy", class_dim=-1))
    a, b = (explain.coadaptation(model, ids, y, members=16) for model in (net, turned))
    assert str(a) == str(b)
    gap, other = (explain.weight_scaling_gap(m, ids, members=16, class_dim=d) for m, d in ((net, -1), (turned, 1)))
    for name in ("one_pass", "arithmetic", "geometric", "outputs"):
        assert torch.equal(getattr(gap, name), getattr(other, name).movedim(1, -1)), name
    assert gap.one_pass.shape == (12, 5, 7)
    torch.testing.assert_close(gap.one_pass.sum(-1), torch.ones(12, 5, dtype=torch.float64))
    visits = explain.member_visits(net, ids, draws=10, class_dim=-1)
    assert visits.disagreement == explain.member_visits(turned, ids, draws=10, class_dim=1).disagreement


def test_a_dimension_of_classes_that_nothing_tells_is_asked_for():
    net, ids = Tokens(), torch.randint(7, (12, 5))
    for measure in (explain.weight_scaling_gap, explain.member_visits):
        with pytest.raises(ValueError, match=r"outputs have shape \(rows, 5, 7\); pass class_dim=-1"):
            measure(net, ids)
    with pytest.raises(ValueError, match=r"class_dim is 3; expected a dimension of outputs \(2, 5, 7\)"):
        explain.member_visits(net, ids, class_dim=3)
    square = torch.randint(7, (12, 7))
    with pytest.raises(ValueError, match="pass class_dim=-1"):
        explain.penalty(net, square, square, "cross_entropy")
    assert explain.penalty(net, square, square, "cross_entropy", class_dim=-1, members=4).measured > 0


def test_the_call_is_the_whole_analysis_of_models_surveyed_once(data, tmp_path, monkeypatch):
    (x, y), surveys, survey = data, [], prepared.survey
    model, undropped = relu_net(), relu_net()
    undropped[2].p = 0.0
    monkeypatch.setattr(
        prepared, "survey", lambda *args, **options: surveys.append(args[0]) or survey(*args, **options)
    )
    asked = []
    found = explain(model, DataLoader(TensorDataset(x, y), 16), undropped=undropped, members=16, draws=100,
                    rows=30, on_question=asked.append)  # fmt: skip
    assert surveys == [model, undropped]
    assert asked == [section.question for section in found.sections]
    assert str(found).splitlines()[0] == found.verdict
    assert isinstance(found, explain.Explanation)
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == found.verdict
    found.save(tmp_path / "page.html", facts=["30 rows"])
    page = (tmp_path / "page.html").read_text()
    assert "What dropout did: Sequential" in page
    assert "To repeat it" not in page


def test_the_call_finds_task_and_classes():
    ids = torch.randint(7, (12, 5))
    found = explain(Tokens(), ids, ids, members=16, draws=10, exclude=("noise", "reliance"))
    assert "NLL" in found.verdict
    assert not [one for one in found.sections if one.sentence.startswith("Not measured")]
    numbers = explain(relu_net(outputs=1), np.random.default_rng(0).normal(size=(20, 6)), np.zeros(20), members=16,
                      draws=10, exclude=("noise", "reliance", "l2"))  # fmt: skip
    assert "mean squared error" in numbers.verdict
    with pytest.raises(ValueError, match="task is 'ranking'"):
        explain(Tokens(), ids, ids, task="ranking")


def test_measures_and_results_are_attributes_and_files_are_not_hidden():
    import puredrop.explanation.penalty as module

    assert explain.penalty is module.penalty is module.measure
    assert explain.Penalty is module.Penalty
    assert repr(explain) == "puredrop.explain"
    with pytest.raises(TypeError, match=r"penalty\(\) got an unexpected keyword argument 'each'"):
        explain.penalty(relu_net(), torch.zeros(2, 6), torch.zeros(2).long(), "cross_entropy", each=True)


MEASURES = ["penalty", "gradient_noise", "l2_strength"]


def fast(name):
    return {"draws": 2, "batches": 3} if name == "gradient_noise" else {}


@pytest.mark.parametrize("name", MEASURES)
def test_the_loss_follows_from_the_targets(name, data):
    net, (x, y) = relu_net(), data
    measure = getattr(explain, name)
    for given in ((x, y), ((x, y),), (x, y.numpy()), (x, y.to(torch.int32))):
        assert str(measure(net, *given, **fast(name))) == str(measure(net, x, y, "cross_entropy", **fast(name)))
    numbers = torch.randn(40, 3, dtype=torch.float64)
    found = measure(net, x, numbers, **fast(name))
    assert str(found) == str(measure(net, x, numbers, nn.MSELoss(), **fast(name)))
    assert str(found) != str(measure(net, x, y, **fast(name)))


@pytest.mark.parametrize("name", MEASURES)
def test_targets_of_a_regression_have_the_outputs_shape(name):
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 1))
    x, y = torch.randn(40, 6), torch.randn(40, 1)
    expected = str(getattr(explain, name)(net, x, y, "mse_loss", **fast(name)))
    for given in (y[:, 0], y[:, 0].numpy(), pd.Series(y[:, 0].double().numpy())):
        assert str(getattr(explain, name)(net, x, given, **fast(name))) == expected


@pytest.mark.parametrize("name", [*MEASURES, "coadaptation"])
def test_floating_point_classes_are_refused_by_name(name, data):
    net, (x, y) = relu_net(), data
    loss = [] if name == "coadaptation" else ["cross_entropy"]
    message = r"y has dtype torch\.float32; expected whole numbers, .*: pass y\.long\(\)"
    with pytest.raises(ValueError, match=message):
        getattr(explain, name)(net, x, y.float(), *loss)
    if loss:
        message = r"y has dtype torch\.float64 and shape \(rows,\), but .* shape \(rows, 3\); .* pass y\.long\(\)"
        with pytest.raises(ValueError, match=message):
            getattr(explain, name)(net, x, y.double())


def test_floating_point_classes_of_the_whole_analysis_are_refused_by_name(data):
    net, (x, y) = relu_net(), data
    message = r"y has dtype torch\.float32; expected whole numbers, .*: pass y\.long\(\)"
    with pytest.raises(ValueError, match=message):
        explain(net, x, y.float(), task="classification")
    with pytest.raises(ValueError, match="train_" + message.replace("pass y", "pass train_y")):
        explain(net, x, y, train_x=x, train_y=y.float())
    message = r"y has dtype torch\.float32 and shape \(40,\); expected \(40, 3\), .* y\.long\(\)"
    with pytest.raises(ValueError, match=message):
        explain(net, x, y.float())


def test_probabilities_of_classes_are_targets_of_the_cross_entropy(data):
    net, (x, y) = relu_net(), data
    hard = explain.penalty(net, x, y, "cross_entropy")
    soft = explain.penalty(net, x, F.one_hot(y, 3).double(), "cross_entropy")
    torch.testing.assert_close(soft.measured, hard.measured)
