"""Rows that meet the same masks whatever the batches, wherever a model has them inside, or an error that names the site."""

from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import puredrop
from dropping import MODELS, model_of
from puredrop.members.engine import Engine, MemberMasks
from puredrop.members.inputs import Batch
from puredrop.members.instrumented import InstrumentedModel
from puredrop.members.outputs import main_output
from puredrop.members.survey import survey

LENGTHS = torch.tensor([10, 9, 8, 7, 6, 5])


class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.function = forward
        self.drop, self.channels = nn.Dropout(0.5), nn.Dropout1d(0.5)
        self.alpha, self.gaussian = nn.AlphaDropout(0.5), puredrop.nn.GaussianDropout(0.5)
        self.table, self.kernel = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.randn(3, 1, 3))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5)
        self.recurrent = nn.LSTM(8, 4, 2, dropout=0.5)
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.function(self, x).flatten(1)


def heads(model, x):  # (batch * heads, length, length)
    q = x.view(-1, 10, 2, 4).transpose(1, 2).flatten(0, 1)
    return (model.drop((q @ q.transpose(1, 2)).softmax(-1)) @ q).view(-1, 2, 10, 4)


def heads_first(model, x):  # (heads * batch, length, length)
    q = torch.stack(x.split(4, 2)).flatten(0, 1)
    return (model.drop((q @ q.transpose(1, 2)).softmax(-1)) @ q).view(2, -1, 10, 4).sum(0)


def windows(model, x):  # (groups * batch * windows, 5, 4)
    cut = x.view(-1, 2, 5, 2, 4).permute(3, 0, 1, 2, 4).reshape(-1, 5, 4)
    return model.drop(cut).view(2, -1, 2, 5, 4).transpose(0, 1)


def picked(model, x):  # no operator tells the order, so that values do
    return model.drop(x[[i for _ in range(3) for i in range(len(x))]]).view(3, len(x), -1).transpose(0, 1)


def in_place(model, x):
    y = torch.cat([x] * 4).clone()
    F.dropout(y, 0.5, model.training, inplace=True)
    return y.view(4, -1, 10, 8).sum(0)


def time_first(function):
    return lambda model, x: function(model, x.transpose(0, 1)).transpose(0, 1)


FORWARDS = {
    "rows first": lambda m, x: m.drop(x),
    "time first": time_first(lambda m, x: m.drop(x)),
    "time first, by function": time_first(lambda m, x: F.dropout(x, 0.5, m.training)),
    "time first, alpha": time_first(lambda m, x: m.alpha(x)),
    "table of positions": lambda m, x: x + m.drop(m.table),
    "stacked heads": lambda m, x: m.drop(torch.stack([x] * 4)).sum(0),
    "heads": heads,
    "heads first": heads_first,
    "groups and windows": windows,
    "parts first": lambda m, x: m.drop(torch.cat(x.split(5, 1))).view(2, len(x), -1).transpose(0, 1),
    "picked": picked,
    "in place": in_place,
    "batch by time": lambda m, x: m.linear(m.drop(x.flatten(0, 1))).view(len(x), -1),
    "time by batch": time_first(lambda m, x: m.linear(m.drop(x.flatten(0, 1))).view(10, -1, 3)),
    "one layer at three places": lambda m, x: m.drop(x) + m.drop(m.table) + time_first(lambda m, x: m.drop(x))(m, x),
    "encoder, time first": time_first(lambda m, x: m.encoder(x)),
    "attention, time first": time_first(lambda m, x: m.attention(x, x, x)[0]),
    "decoder": lambda m, x: m.decoder(x, 2 * x),
    "recurrent, time first": time_first(lambda m, x: m.recurrent(x)[0]),
    "convolution": lambda m, x: m.drop(F.conv1d(x.flatten(0, 1)[:, None], m.kernel)).view(len(x), -1),
    "channels": lambda m, x: m.channels(x),
    "noise": lambda m, x: m.gaussian(x),
}


@pytest.mark.parametrize("masks", ["shared", "independent"])
@pytest.mark.parametrize("name", FORWARDS)
def test_no_prediction_depends_on_the_batches(name, masks):
    torch.manual_seed(0)
    model, x = Model(FORWARDS[name]).eval(), torch.randn(6, 10, 8)

    def outputs(*sizes):
        ensemble = puredrop.DropoutEnsemble(model, "regression", masks=masks)  # surveyed on its first batch
        return ensemble.predict([(part,) for part in x.split(sizes)], members=3, keep=3).outputs

    whole = outputs(6)
    assert whole.std(0).max() > 0.01
    torch.testing.assert_close(outputs(1, 5), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(4, 2), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_models_with_rows_first_keep_every_bit(name):
    """The masks that members had before the place of the rows was shown."""
    model, x = model_of(name)
    batch, members = Batch((x,), {}, len(x), 0), MemberMasks(3, is_shared=False, balanced=False)
    plan = survey(model, batch, members, main_output).plan
    assert bool(plan.axes) == (name not in ("mlp", "input dropout"))  # which are chains of rowwise layers

    def outputs():
        engine = Engine(InstrumentedModel(model, plan, 0), members, main_output, [], is_batched=False)
        with engine.opened():
            return engine.outputs(batch, [0, 7], 2)

    found = outputs()
    plan.axes = {}
    assert torch.equal(outputs(), found)


def valid_alone(model, x):
    is_valid = torch.arange(10) < LENGTHS[: len(x), None]
    return x.masked_scatter(is_valid[..., None], model.drop(x[is_valid]))


def packed(model, x):
    rows = nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), LENGTHS[torch.zeros(len(x), dtype=torch.long)])
    return nn.utils.rnn.pad_packed_sequence(model.recurrent(rows)[0])[0].transpose(0, 1)


REFUSED = {
    "row by row": (
        lambda m, x: torch.stack([m.drop(row) for row in x]),
        "'drop' is used 2 times for 2 rows and .* drop from all rows",
    ),
    "batch against batch": (
        lambda m, x: m.drop((x.flatten(1) @ x.flatten(1).t()).softmax(-1)) @ x.flatten(1),
        r"'drop' drops from \((\d+), \1\) for \1 rows, rows meet in dimensions \[0, 1\]",
    ),
    "a row more": (
        lambda m, x: m.drop(torch.cat([m.table[None], x]))[1:],
        "'drop' .* dimension 0 and 3 for 2 does not follow the rows",
    ),
    "attention over rows": (lambda m, x: m.encoder(x), "'encoder.self_attn' .* rows meet in dimensions"),
    "packed": (packed, "'recurrent/1' .* packed sequence, .* use padded sequences"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_site_whose_rows_cannot_be_found_is_refused(name):
    forward, error = REFUSED[name]
    with pytest.raises(ValueError, match=error):
        puredrop.DropoutEnsemble(Model(forward).eval(), "regression").predict(torch.randn(6, 10, 8))


def test_a_site_that_drops_nothing_is_not_refused():
    model = Model(lambda m, x: m.alpha(valid_alone(m, x))).eval()
    model.drop.p = 0.0
    assert puredrop.DropoutEnsemble(model, "regression").predict(torch.randn(6, 10, 8), members=2).mean.shape == (6, 80)


def test_an_order_that_nothing_shows_is_refused():
    model = Model(lambda m, x: x + picked(m, x.new_ones(len(x), 1)).mean()).eval()
    with pytest.raises(ValueError, match="in which order dimension 0 holds 3 indices of each row; put the rows"):
        puredrop.DropoutEnsemble(model, "regression").predict(torch.randn(2, 10, 8))


def test_noise_within_groups_is_refused_for_rows_of_their_own():
    model = Model(lambda m, x: m.gaussian(torch.cat([x] * 4)).view(4, -1, 10, 8).sum(0)).eval()
    x = torch.randn(6, 10, 8)
    with pytest.raises(ValueError, match=r"'gaussian' draws noise for .* within 4 groups"):
        puredrop.DropoutEnsemble(model, "regression", masks="independent").predict(x)
    assert puredrop.DropoutEnsemble(model, "regression").predict(x, members=2).variance.max() > 0


def test_an_input_unlike_the_surveyed_one_is_refused():
    model = Model(lambda m, x: m.drop(x.transpose(0, 1) if x.shape[1] == 10 else x))
    ensemble = puredrop.DropoutEnsemble(model.eval(), lambda out: out.sum().expand(6), seed=1)
    ensemble.survey(torch.randn(6, 10, 8))
    with pytest.raises(ValueError, match=r"'drop' drops from \(6, 7, 8\), which does not hold 6 rows in dimension 1"):
        ensemble.predict(torch.randn(6, 7, 8), members=2)


def test_a_model_that_runs_on_two_rows_alone_says_what_is_taken_for_granted():
    model = Model(lambda m, x: m.drop(x.view(min(len(x), 2), 10, 8))).eval()
    with pytest.warns(UserWarning, match=r"runs on 2 rows and not on 4 .* taken for granted"):
        puredrop.DropoutEnsemble(model, "regression").predict(torch.randn(2, 10, 8), members=2)


@pytest.mark.parametrize("name", ["time first", "table of positions", "stacked heads"])
def test_a_member_as_a_module_has_the_masks_where_the_rows_are(name):
    model, x = Model(FORWARDS[name]).eval(), torch.randn(4, 10, 8)
    ensemble = puredrop.DropoutEnsemble(model, "regression")
    outputs = ensemble.predict(x, members=4, keep=4).outputs
    torch.testing.assert_close(ensemble.member(3)(x), outputs[3].to(x), rtol=1e-4, atol=1e-5)


def test_a_member_as_a_module_needs_rows_outside_of_groups():
    ensemble = puredrop.DropoutEnsemble(Model(heads_first).eval(), "regression")
    with pytest.raises(ValueError, match="drop drops from a tensor that does not have one row for each sample"):
        ensemble.member(0, torch.randn(4, 10, 8))


def test_at_most_one_more_forward_runs(monkeypatch):
    counts = []

    def count(module, inputs):
        counts.append(len(inputs[0]))

    def forwards(*layers):
        counts.clear()
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: count(module, inputs) if isinstance(module, nn.Softplus) else None
        )
        ensemble = puredrop.DropoutEnsemble(nn.Sequential(*layers).eval(), "regression").survey(torch.randn(4, 8))
        handle.remove()
        return ensemble._survey.plan.axes, sorted(counts)

    layers = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)
    axes, shown = forwards(*layers, nn.Softplus())
    assert axes
    monkeypatch.setattr("puredrop.members.placement.is_rowwise", lambda *_: True)
    axes, trivial = forwards(*layers, nn.Softplus())
    assert axes == {}
    assert len(shown) == len(trivial) + 1
    assert max(shown) > max(trivial)


def test_rows_meet_the_masks_that_they_meet_first():
    """Time first inside is the same function: the decisions of a row are numbered as if the row came first."""
    torch.manual_seed(0)
    x, first, inside = torch.randn(6, 10, 8), Model(FORWARDS["rows first"]), Model(FORWARDS["time first"])
    for masks in ("shared", "independent"):
        found = [puredrop.DropoutEnsemble(m.eval(), "regression", masks=masks).predict(x).mean for m in (first, inside)]
        torch.testing.assert_close(*found)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize("pack", [Pair, lambda *x: x, lambda *x: MappingProxyType(dict(enumerate(x)))])
def test_rows_in_containers_are_split_into_batches(pack):
    torch.manual_seed(0)
    unpack = {Pair: tuple, tuple: tuple, MappingProxyType: lambda x: x.values(), dict: dict.values}
    model = Model(lambda model, x: model.linear(model.drop(torch.mul(*unpack[type(x)](x)))))
    ensemble = puredrop.DropoutEnsemble(model, masks="independent")
    x = pack(torch.randn(7, 8), torch.randn(7, 8))
    found = [ensemble.predict(x=x, members=4, batch_size=size).mean for size in (7, 3)]
    assert found[0].shape == (7, 3)
    torch.testing.assert_close(*found)


def test_explanations_follow_the_rows():
    torch.manual_seed(0)
    x, y = torch.randn(6, 10, 8), torch.randint(2, (6,))
    head = nn.Linear(80, 2)

    def measured(name):
        model = nn.Sequential(Model(FORWARDS[name]), head).eval()
        return puredrop.explain.gradient_noise(model, x, y), puredrop.explain.penalty(model, x, y)

    (noise, cost), (noise_inside, cost_inside) = measured("rows first"), measured("time first")
    assert str(cost_inside) == str(cost)
    assert noise_inside.masks == pytest.approx(noise.masks)
