"""A bad and a fixed model for each code."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import puredrop
from puredrop import Key, check
from puredrop.cli import main
from puredrop.linting import CODES
from puredrop.testing import assert_dropout_ok


class Fn(nn.Module):
    """A module from a function of itself and its input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


class Stuck(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)


class Rate(nn.Module):
    """A module that holds a rate, with a forward from a function of itself and its input."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.out, self.drop_rate, self.function = nn.Linear(4, 4), nn.Linear(4, 3), 0.5, forward

    def forward(self, x):
        return self.function(self, x)


def zeroed(m, x):
    if not m.training:
        m.drop_rate = 0.0
    return m.out(F.dropout(m.first(x), m.drop_rate, m.training))


def thrown_away(m, x):
    h = m.first(x)
    m.drop(h)
    return m.out(h)


def linear(*between, outputs=3):
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, outputs))


def keyed(twice):
    first = puredrop.nn.Dropout(0.5, key=Key(1))
    return linear(first, nn.ReLU(), first if twice else puredrop.nn.Dropout(0.5, key=Key(2)))


def on_maps(layer):
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), layer, nn.Flatten(), nn.Linear(36, 2))


ROWS, IMAGES = torch.randn(64, 4), torch.randn(16, 1, 4, 4)
with pytest.warns(UserWarning, match="num_layers greater than 1"):
    ONE_LAYER = nn.LSTM(4, 4, 1, dropout=0.5)
MODELS = {
    "PD101": (
        Fn(lambda m, x: m.out(F.dropout(x, 0.5)), out=nn.Linear(4, 4)),
        Fn(lambda m, x: m.out(F.dropout(x, 0.5, m.training)), out=nn.Linear(4, 4)),
    ),
    "PD102": (
        Fn(lambda m, x: m.out(F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), out=nn.Linear(4, 4)),
        Fn(
            lambda m, x: m.out(F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 * m.training)), out=nn.Linear(4, 4)
        ),
    ),
    "PD103": (
        Fn(lambda m, x: m.out(x * torch.bernoulli(torch.full_like(x, 0.5))), out=nn.Linear(4, 4)),
        Fn(lambda m, x: m.out(x * torch.bernoulli(torch.full_like(x, 0.5)) if m.training else x), out=nn.Linear(4, 4)),
    ),
    "PD104": (Stuck(nn.Dropout(0.5), nn.Linear(4, 4)), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4))),
    "PD201": (
        Fn(lambda m, x: m.out(x), out=nn.Linear(4, 4), drop=nn.Dropout(0.5)),
        Fn(lambda m, x: m.out(m.drop(x)), out=nn.Linear(4, 4), drop=nn.Dropout(0.5)),
    ),
    "PD202": (
        Fn(lambda m, x: m.out(F.alpha_dropout(x, 0.5)), out=nn.Linear(4, 4)),
        Fn(lambda m, x: m.out(F.alpha_dropout(x, 0.5, m.training)), out=nn.Linear(4, 4)),
    ),
    "PD203": (
        Fn(thrown_away, first=nn.Linear(4, 4), drop=nn.Dropout(0.5), out=nn.Linear(4, 3)),
        Fn(thrown_away, first=nn.Linear(4, 4), drop=nn.Dropout(0.5, inplace=True), out=nn.Linear(4, 3)),
    ),
    "PD204": (
        Rate(zeroed),
        Rate(lambda m, x: m.out(F.dropout(m.first(x), m.drop_rate if m.training else 0.0))),
    ),
    "PD205": (
        Rate(lambda m, x: m.out(m.first(x))),
        Rate(lambda m, x: m.out(F.dropout(m.first(x), m.drop_rate / 2, m.training))),
    ),
    "PD301": (linear(nn.Dropout(0.0)), linear(nn.Dropout(0.1))),
    "PD302": (linear(nn.Dropout(1.0)), linear(nn.Dropout(0.1))),
    "PD303": (linear(nn.Dropout(0.95)), linear(nn.Dropout(0.05))),
    "PD401": (linear(nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(4)), linear(nn.BatchNorm1d(4), nn.Dropout(0.5))),
    "PD402": (linear(nn.ReLU()).append(nn.Dropout(0.5)), linear(nn.ReLU(), nn.Dropout(0.5))),
    "PD403": (linear(nn.Dropout(0.5), outputs=1), linear(nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), outputs=1)),
    "PD404": (on_maps(nn.Dropout(0.5)), on_maps(nn.Dropout2d(0.5))),
    "PD405": (keyed(True), keyed(False)),
    "PD501": (ONE_LAYER, nn.LSTM(4, 4, 2, dropout=0.5)),
}


@pytest.mark.parametrize("code", MODELS)
def test_a_bad_and_a_fixed_model_for_each_code(code):
    x = IMAGES if code == "PD404" else ROWS
    bad, fixed = MODELS[code]
    report = check(bad, x)
    assert [one.code for one in report] == [code], str(report)
    assert not report.ok
    assert CODES[code].title in str(report)
    assert check(fixed, x).ok, str(check(fixed, x))


def test_every_code_has_a_test_and_a_page():
    source = {path.name[:5].upper() for path in (Path(__file__).parent / "source").glob("*.py")}
    watched = {"PD601", "PD602"}  # of training loops: test_training_watch
    unreadable = {"PD001"}  # test_source
    assert set(MODELS) | source | watched | unreadable == set(CODES)
    page = (Path(__file__).parents[2] / "docs/check.md").read_text()
    for code, about in CODES.items():
        assert f"### {code}: {about.title}" in page


@pytest.mark.parametrize("between", [0, 1])
def test_the_variance_shift_is_predicted_and_measured(between):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Dropout(0.5), *[nn.Linear(50, 50)] * between, nn.BatchNorm1d(50), nn.Linear(50, 2))
    (found,) = check(model, torch.randn(20_000, 50).relu())
    # Directly behind, from theory: mean .399, variance .341 of a rectified normal: .341 / (.5 / .5 - .159) = .405.
    if not between:
        measured, predicted = map(float, re.findall(r"0\.\d+", found.detail)[1:])
        assert abs(measured - 0.405) < 0.02
        assert abs(predicted - 0.405) < 0.02
    assert ("predicted" in found.detail) == (not between)


def test_models_that_are_fine_have_no_findings():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    assert check(encoder, torch.randn(2, 3, 8)).ok
    assert_dropout_ok(linear(nn.ReLU(), nn.Dropout(0.5)), ROWS)


def test_the_assertion_for_tests():
    bad = MODELS["PD303"][0]
    with pytest.raises(AssertionError, match=r"1: warning PD303: the rate is 0\.9 or more: p=0\.95"):
        assert_dropout_ok(bad, ROWS)
    assert_dropout_ok(bad, ROWS, ignore=["PD303"])
    with pytest.raises(ValueError, match=r"ignore has \['PD999'\]"):
        assert_dropout_ok(bad, ROWS, ignore=["PD999"])


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "checked_models.py").write_text(
        "from torch import nn\n"
        "def bad(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.95), nn.Linear(4, 3))\n"
        "def good(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "checked_models:bad", "--input", "2,4"]) == 1
    assert "PD303" in capsys.readouterr().out
    assert main(["check", "checked_models:good", "--input", "2,4"]) == 0
    assert main(["check", "checked_models:good", "--input", "2,5"]) == 2
    assert re.search("RuntimeError: (addmm: )?mat1 and mat2 shapes cannot be multiplied", capsys.readouterr().err)
    for format in ("sarif", "github", "json"):
        assert main(["check", "checked_models:bad", "--input", "2,4", "--format", format]) == 1
        assert "PD303" in capsys.readouterr().out
