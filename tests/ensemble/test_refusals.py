"""Predictions that are refused by name, models that cannot be run as they are, and those that can in odd states."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import puredrop
from dropping import model_of


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"members": 0}, ValueError, "members is 0; expected 1 or more"),
        ({"members": 2.5}, TypeError, r"members is 2\.5; expected an integer"),
        ({"tolerance": 0}, ValueError, "tolerance is 0; expected more than 0"),
        ({"tolerance": -1.0}, ValueError, r"tolerance is -1\.0"),
        ({"until": "never"}, ValueError, "until is 'never'; expected 'top_class'"),
        ({"until": "top_class", "tolerance": 0.1}, ValueError, "until and tolerance are given"),
        ({"noise": 0.1}, ValueError, "noise is given, but task is 'classification'"),
        ({"confidence": 1.0}, ValueError, r"confidence is 1\.0"),
        ({"memory": 0}, ValueError, "memory is 0"),
        ({"keep": -1}, ValueError, "keep is -1"),
        ({"bounds": (1.0, 0.0)}, ValueError, r"bounds is \(1\.0, 0\.0\)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    model, x = model_of("mlp")
    with pytest.raises(error, match=message):
        puredrop.DropoutEnsemble(model).predict(x, **arguments)


def test_bad_inputs():
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model)
    for row in (1, 3):
        x[row, 2] = math.nan
    with pytest.raises(ValueError, match=r"x has NaN in 2 rows: 1, 3; expected numbers"):
        ensemble.predict(x)
    with pytest.raises(ValueError, match=r"x has NaN in 2 rows: 6, 8"):
        ensemble.predict(iter([torch.zeros(5, 6), x]))
    with pytest.raises(ValueError, match="x has no rows"):
        ensemble.predict(torch.zeros(0, 6))
    with pytest.raises(TypeError, match="x holds object; expected tensors"):
        ensemble.predict((object(),))
    with pytest.raises(TypeError, match="expected numbers"):
        ensemble.predict(np.array([["a"]]))
    with pytest.raises(ValueError, match="task is 'multi'; expected 'classification'"):
        puredrop.DropoutEnsemble(model, "multi")
    with pytest.raises(ValueError, match="masks is 'own'"):
        puredrop.DropoutEnsemble(model, masks="own")
    with pytest.raises(TypeError, match="seed is 'x'"):
        puredrop.DropoutEnsemble(model, seed="x")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        puredrop.DropoutEnsemble(3)
    one_logit = nn.Sequential(nn.Dropout(), nn.Linear(6, 1))
    with pytest.raises(ValueError, match=r"class_dim is 1, the model's output has shape \(5, 1\)"):
        puredrop.DropoutEnsemble(one_logit).predict(torch.randn(5, 6))
    with pytest.raises(ValueError, match="tolerance needs bounds"):
        puredrop.DropoutEnsemble(model, "regression").predict(torch.randn(5, 6), tolerance=0.1)
    with pytest.raises(RuntimeError, match=r"call survey\(x\) or predict\(x\) first"):
        _ = puredrop.DropoutEnsemble(model).num_members


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(6, 3), "model has no dropout: neither seen in a forward nor held by a module"),
        (nn.Sequential(nn.Dropout(0.0), nn.Linear(6, 3)), r"only dropout that leaves nothing to chance: 0 p=0"),
        (nn.Sequential(nn.Dropout(1.0), nn.Linear(6, 3)), r"leaves nothing to chance: 0 p=1"),
    ],
)
def test_without_anything_to_decide_there_is_no_ensemble(model, message):
    with pytest.raises(ValueError, match=message):
        puredrop.DropoutEnsemble(model).predict(torch.randn(5, 6))


class NeverCalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(x)


class OwnNoise(nn.Module):
    """Dropout, and a stochastic depth written by hand, whose random numbers no key reaches."""

    def __init__(self):
        super().__init__()
        self.drop, self.path, self.last = nn.Dropout(0.5), ByHand(), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.drop(x + self.path(x)))


class ByHand(nn.Module):
    drop_prob = 0.5

    def forward(self, x):
        return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) * 2 if self.training else x


ByHand.__name__ = "DropPathByHand"


def test_what_cannot_be_reached_is_named():
    with pytest.raises(ValueError, match="model has dropout that its forward never calls: drop"):
        puredrop.DropoutEnsemble(NeverCalled()).predict(torch.randn(5, 6))
    model, x = OwnNoise(), torch.randn(5, 6)
    found = puredrop.DropoutEnsemble(model).predict(x)
    assert list(found.skipped) == ["path"]
    assert "not part of any member: path: draws random numbers of its own" in repr(found)
    again = puredrop.DropoutEnsemble(model).predict(x)
    assert torch.equal(found.mean, again.mean)
    model.path = nn.Identity()  # off is what it is in eval mode
    torch.testing.assert_close(puredrop.DropoutEnsemble(model).predict(x / 1).mean.shape, found.mean.shape)


class Demanding(nn.Module):
    """Wants targets in training mode, as torchvision's detectors do, and branches on the mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x, targets=None):
        if self.training:
            return (self.layers(x) - targets).square().sum()
        return self.layers(x)


def test_a_model_that_cannot_be_run_in_training_mode():
    model, x = Demanding(), torch.randn(5, 6)
    found = puredrop.DropoutEnsemble(model).predict(x)
    assert found.variance.max() > 1e-4
    assert "could not be run in training mode" in found.skipped["(model)"]


def test_rows_come_first_in_what_a_model_returns():
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4)), torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"returns shape \(4,\) for 5 rows; expected rows first"):
        puredrop.DropoutEnsemble(model, lambda out: out.mean(0)).predict(x)
    first = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    tokens = torch.randn(7, 5, 3)  # (tokens, rows, features)
    ensemble = puredrop.DropoutEnsemble(first, lambda out: out.mean(0), sample_dim=1)
    found = ensemble.predict(tokens)
    assert found.mean.shape == (5, 2)
    same = tokens[:, :1].expand(-1, 5, -1)
    alike = ensemble.predict(same).mean
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))  # rows share masks, tokens do not
    assert ensemble.units == 7 * 8


def test_outputs_without_a_tensor_are_refused():
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            self.drop(x)
            return ["a"]

    with pytest.raises(TypeError, match=r"returns list, in which no tensor was found; pass task=function"):
        puredrop.DropoutEnsemble(Texts()).predict(torch.randn(5, 6))


def test_autocast_and_half_precision():
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model)
    expected = ensemble.predict(x).mean
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ensemble.predict(x).mean, expected, rtol=0.05, atol=0.02)
    half = puredrop.DropoutEnsemble(model.bfloat16()).predict(x.bfloat16())
    torch.testing.assert_close(half.mean, expected, rtol=0.05, atol=0.02)
    assert half.slow == ""


def test_a_compiled_model_is_the_model():
    model, x = model_of("mlp")
    compiled = torch.compile(model, backend="eager")
    expected = puredrop.DropoutEnsemble(model).predict(x).mean
    assert torch.equal(puredrop.DropoutEnsemble(compiled).predict(x).mean, expected)


def test_weights_and_rates_are_read_when_it_is_called():
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model)
    before = ensemble.predict(x).mean
    with torch.no_grad():
        model[6].weight.mul_(3)
    model[2].p = 0.1
    fresh = puredrop.DropoutEnsemble(model).predict(x).mean
    assert torch.equal(ensemble.predict(x).mean, fresh)
    assert not torch.allclose(before, fresh)
