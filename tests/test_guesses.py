"""What users type first where the library has another name or place: the error says what to type instead."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import puredrop
from dropping import model_of
from puredrop import Key
from puredrop.ensemble import prediction


def ensemble():
    model, x = model_of("mlp")
    return puredrop.DropoutEnsemble(model), x


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_dim", 1), ("task", "regression"), ("seed", 3), ("sample_dim", 1), ("masks", "shared"), ("balanced", True)],
)
@pytest.mark.parametrize("method", ["predict", "weight_scaling", "exact"])
def test_what_belongs_to_the_ensemble_is_sent_there(method, name, value):
    guessed, x = ensemble()
    message = (
        f"{name} is no argument of {method}; it is given to the ensemble: DropoutEnsemble(model, {name}={value!r})"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        getattr(guessed, method)(x, **{name: value})


def test_a_rate_is_set_in_the_model():
    guessed, x = ensemble()
    with pytest.raises(TypeError, match=r"p is no argument of predict; .* set them there: layer\.p = 0\.3"):
        guessed.predict(x, p=0.3)
    with pytest.raises(TypeError, match=r"DropoutEnsemble has no argument p; .* set them there: layer\.p = 0\.4"):
        puredrop.DropoutEnsemble(guessed.model, p=0.4)


class Seeded(nn.Module):
    """A model that takes inputs named as arguments of the ensemble and of a layer."""

    def __init__(self):
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x, seed=None, p=None):
        return self.last(self.drop(x + seed * p))


def test_an_input_of_the_model_may_have_such_a_name():
    guessed, x = puredrop.DropoutEnsemble(Seeded()), torch.randn(5, 6)
    seed, p = torch.randn(5, 6), torch.randn(5, 6)
    found = guessed.predict(x=x, seed=seed, p=p)
    assert torch.equal(found.mean, guessed.predict(x + seed * p, torch.zeros(5, 6), p).mean)


@pytest.mark.parametrize(
    ("name", "value", "call"),
    [
        ("members", 8, "ensemble.predict(x, members=8)"),
        ("num_samples", 9, "ensemble.predict(x, members=9)"),
        ("n", 9, "ensemble.predict(x, members=9)"),
        ("batch_size", 7, "ensemble.predict(x, batch_size=7)"),
        ("until", "top_class", "ensemble.predict(x, until='top_class')"),
        ("device", "cuda", "model.to('cuda')"),
    ],
)
def test_what_belongs_to_the_call_is_sent_there(name, value, call):
    with pytest.raises(TypeError, match=f"DropoutEnsemble has no argument {name}; .*: {re.escape(call)}$"):
        puredrop.DropoutEnsemble(ensemble()[0].model, **{name: value})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("std", "prediction.variance.sqrt()"),
        ("mean_std", "prediction.mean and prediction.variance.sqrt()"),
        ("probs", "prediction.mean for"),
        ("label", "prediction.mean.argmax(1)"),
        ("samples", "predict(x, keep=64).outputs"),
        ("epistemic", "prediction.mutual_information"),
        ("to_pandas", "prediction.frame()"),
    ],
)
def test_a_guessed_figure_of_a_prediction_is_answered_with_its_place(name, place):
    guessed, x = ensemble()
    with pytest.raises(AttributeError, match=re.escape(f"Prediction has no attribute {name!r}; type {place}")):
        getattr(guessed.predict(x, members=16), name)


def test_every_place_that_a_prediction_names_exists():
    guessed, x = ensemble()
    found = guessed.predict(x, members=16, keep=16)
    for name, text in prediction._GUESSES.items():
        assert not hasattr(found, name)
        for call in re.findall(r"prediction\.[a-z_]+(?:\.[a-z]+)*(?:\([^)]*\))?", text):
            place = call.replace("(device)", "('cpu')")
            value = eval(place, {"prediction": found})
            assert value is not None or call == "prediction.interval", (name, call)
    with pytest.raises(AttributeError, match=r"Prediction has no attribute 'stdd'$"):
        _ = found.stdd
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(other.mean, found.mean)


@pytest.mark.parametrize("method", ["predict", "survey", "exact", "weight_scaling", "acquire"])
def test_no_rows_are_refused_by_name_before_anything_was_seen(method):
    guessed, x = ensemble()
    with pytest.raises(ValueError, match="x has no rows; expected one at least"):
        getattr(guessed, method)(x[:0], **({"k": 1} if method == "acquire" else {}))


def test_no_rows_for_moments():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="x has no rows; expected one at least"):
        puredrop.DropoutEnsemble(net).moments(torch.randn(0, 4))


@pytest.mark.parametrize(
    "call",
    [
        lambda key: puredrop.nn.Dropout(0.3, key=key),
        lambda key: puredrop.nn.Dropout(0.3).set_key(key),
        lambda key: puredrop.functional.dropout(torch.ones(3), 0.3, key=key),
        lambda key: puredrop.keep_mask((3,), 0.3, key=key),
    ],
)
def test_a_number_in_the_place_of_a_key_is_echoed_as_a_key(call):
    with pytest.raises(TypeError, match=r"key is 37; .*key=puredrop\.Key\(37\)"):
        call(37)
    with pytest.raises(TypeError, match=r"key is 'a'; .*key=puredrop\.Key\(1\)"):
        call("a")
    call(Key(37))


@pytest.mark.parametrize("name", ["sites", "check"])
def test_missing_inputs_are_asked_for_by_the_call_that_was_typed(name):
    with pytest.raises(TypeError, match=rf"forward\(input\) needs some; .* such as {name}\(model, x\)"):
        getattr(puredrop, name)(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
