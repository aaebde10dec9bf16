"""Predictions: streamed statistics against all outputs at once, inputs of every kind, stopping."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import puredrop
from dropping import model_of
from puredrop.ensemble import predictor
from puredrop.ensemble.confidence_sequence import ConfidenceSequence, expected_members
from puredrop.ensemble.running_statistics import RunningStatistics


def entropy(p):
    return torch.special.entr(p).sum(-1)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("members", [1, 16, 40, 64])
def test_running_sums_are_those_of_all_outputs(members, balanced):
    outputs = (3 * torch.randn(members, 5, 4)).softmax(-1)
    running = RunningStatistics(1, balanced, kept=20)
    for block in outputs.split(16):
        running.add(block)
    outputs = outputs.double()
    torch.testing.assert_close(running.mean, outputs.mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(running.expected_entropy, entropy(outputs).mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.cat(running.outputs), outputs[:20].float())
    if members == 1:
        assert running.variance.isnan().all()
        return
    torch.testing.assert_close(running.variance, outputs.var(0), rtol=1e-6, atol=1e-9)
    blocks = [one.mean(0) for one in outputs.split(16)] if balanced else list(outputs)
    sizes = torch.tensor([len(one) for one in outputs.split(16)] if balanced else [1.0] * members).double()
    if len(blocks) < 2:
        assert running.standard_error.isnan().all()
        return
    away = torch.stack(blocks) - outputs.mean(0)
    squares = (sizes[:, None, None] * away).square().sum(0) / members**2 * len(blocks) / (len(blocks) - 1)
    torch.testing.assert_close(running.standard_error, squares.sqrt(), rtol=1e-6, atol=1e-9)


def test_running_sums_of_large_numbers_keep_their_digits():
    outputs = 1e6 + torch.randn(64, 3, dtype=torch.float64)
    running = RunningStatistics(None, balanced=False, kept=0)
    for block in outputs.split(16):
        running.add(block)
    torch.testing.assert_close(running.variance, outputs.var(0), rtol=1e-8, atol=0)


def test_the_jackknife_takes_the_bias_of_the_entropy_away():
    """Theory 6: the plug-in is biased by (1/2T) sum Var/mean; 2000 draws at T=32, 4 standard errors."""
    torch.manual_seed(0)
    pool = (3 * torch.randn(20_000, 10)).softmax(-1)
    truth = entropy(pool.double().mean(0))
    plug_in, corrected = [], []
    for chosen in torch.randint(0, 20_000, (2000, 32)):
        running = RunningStatistics(0, balanced=False, kept=0)
        for block in pool[chosen].split(16):
            running.add(block)
        plug_in.append(entropy(running.mean))
        corrected.append(running.entropy)
    plug_in, corrected = torch.stack(plug_in), torch.stack(corrected)
    error = float(corrected.std() / math.sqrt(2000))
    assert plug_in.mean() < truth - 20 * error
    assert abs(corrected.mean() - truth) < 4 * error + 0.1 * float(truth - plug_in.mean())


@pytest.mark.parametrize("memory", [2**12, 2**17, 2**30])
@pytest.mark.parametrize("members", [1, 7, 16, 50])
def test_chunks_do_not_show(members, memory):
    model, x = model_of("mlp")
    expected = puredrop.DropoutEnsemble(model).predict(x, members=members, batch_size=len(x))
    found = puredrop.DropoutEnsemble(model).predict(x, members=members, memory=memory, batch_size=2)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-4, atol=1e-6)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(3, 8), nn.Linear(8, 2), nn.Dropout(0.5)

    def forward(self, x, scale=None, flag=True):
        h = torch.relu(self.a(x))
        h = h if scale is None else h * scale[:, None]
        return {"loss": h.sum(), "logits": self.b(self.drop(h))}


def test_inputs_of_every_kind_are_the_same_rows():
    torch.manual_seed(0)
    model, x, scale, y = TwoInputs(), torch.randn(10, 3), torch.rand(10), torch.arange(10)
    ensemble = puredrop.DropoutEnsemble(model)
    plain = ensemble.predict(x).mean
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, scale), batch_size=4)
    labelled = [(a, b, True, c) for a, b, c in zip(x.split(3), scale.split(3), y.split(3), strict=True)]
    for same in (
        x.numpy(),
        x.double().numpy(),
        pd.DataFrame(x.numpy(), columns=["a", "b", "c"]),
        {"x": x, "labels": y},
        (x,),
        [{"x": part} for part in x.split(4)].__iter__(),
        torch.utils.data.DataLoader(x, batch_size=3),
    ):
        torch.testing.assert_close(ensemble.predict(same).mean, plain, rtol=1e-5, atol=1e-6)
    scaled = ensemble.predict((x, scale)).mean
    assert (scaled - plain).abs().max() > 0.01
    for same in ({"x": x, "scale": scale}, loader, iter(labelled), {"x": x.numpy(), "scale": scale.numpy()}):
        torch.testing.assert_close(ensemble.predict(same).mean, scaled, rtol=1e-5, atol=1e-6)


def test_inputs_are_given_as_the_model_takes_them():
    torch.manual_seed(0)
    model, x, scale = TwoInputs(), torch.randn(10, 3), torch.rand(10)
    ensemble = puredrop.DropoutEnsemble(model)
    expected = ensemble.predict((x, scale)).mean
    batch = {"x": x, "scale": scale}
    for found in (ensemble.predict(x, scale), ensemble.predict(**batch), ensemble(x, scale=scale), ensemble(batch)):
        assert torch.equal(found.mean, expected)
    assert torch.equal(ensemble.weight_scaling(x, scale), ensemble.weight_scaling(**batch))
    assert ensemble.acquire(x, scale=scale, k=2).tolist() == ensemble.acquire((x, scale), k=2).tolist()
    for names in ({"num_samples": 8}, {"n": 8}):
        with pytest.raises(TypeError, match="members=8"):
            ensemble.predict(x, **names)
    with pytest.raises(
        TypeError, match=r"memmory is no option \(members, noise.* input of the model \(x, scale, flag\)"
    ):
        ensemble.predict(x, memmory=8)
    with pytest.raises(TypeError, match=r"an input is 8.*members="):
        puredrop.DropoutEnsemble(model_of("mlp")[0]).predict(x, 8)
    with pytest.raises(TypeError, match="does not take 4 inputs"):
        ensemble.predict(x, scale, x, x)
    with pytest.raises(TypeError, match="DataLoader is given with other inputs"):
        ensemble.predict(torch.utils.data.DataLoader(x), scale)
    with pytest.raises(TypeError, match="no inputs"):
        ensemble.predict()


def test_guessed_attributes_name_what_to_type():
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model).survey(x)
    torch.testing.assert_close(ensemble[3](x), ensemble.member(3)(x))
    for name, hint in (
        ("predict_proba", "predict(x).mean"),
        ("to", "model.to"),
        ("sample", "outputs"),
        ("std", "sqrt"),
    ):
        with pytest.raises(AttributeError, match=re.escape(hint)):
            getattr(ensemble, name)
    with pytest.raises(TypeError, match="num_members"):
        len(ensemble)
    with pytest.raises(TypeError, match="not iterable"):
        list(ensemble)
    assert ensemble


def test_a_loader_that_shuffles_is_said():
    model, x = model_of("mlp")
    with pytest.warns(UserWarning, match="the loader shuffles"):
        puredrop.DropoutEnsemble(model).predict(torch.utils.data.DataLoader(x, batch_size=2, shuffle=True))


def test_maps_of_classes():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(8, 3, 1))
    found = puredrop.DropoutEnsemble(model).predict(torch.randn(2, 1, 4, 4))
    assert found.mean.shape == (2, 3, 4, 4)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(2, 4, 4, dtype=torch.float64))
    assert found.entropy.shape == found.mutual_information.shape == (2, 4, 4)
    assert found.standard_error.shape == (2, 3, 4, 4)


def test_regression_adds_noise_to_the_variance():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)), torch.randn(6, 3)
    ensemble = puredrop.DropoutEnsemble(model, "regression")
    plain = ensemble.predict(x)
    assert plain.entropy is plain.mutual_information is None
    torch.testing.assert_close(ensemble.predict(x, noise=0.25).variance, plain.variance + 0.25)
    per_output = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(ensemble.predict(x, noise=per_output).variance, plain.variance + per_output.double())
    # A head of mean and log variance: the law of total variance.
    head = puredrop.DropoutEnsemble(model, lambda out: out[:, :1])
    found = head.predict(x, noise=lambda out: out[:, 1:].exp(), keep=64)
    both = puredrop.DropoutEnsemble(model, "regression").predict(x, keep=64).outputs.double()
    expected = both[:, :, :1].var(0) + both[:, :, 1:].exp().mean(0)
    torch.testing.assert_close(found.variance, expected, rtol=1e-5, atol=1e-7)


def test_quantiles_are_those_of_the_outputs():
    model, x = model_of("mlp")
    found = puredrop.DropoutEnsemble(model).predict(x, members=50)
    levels = [0.1, 0.5, 0.93]
    expected = torch.quantile(found.outputs.double(), torch.tensor(levels, dtype=torch.float64), dim=0)
    torch.testing.assert_close(found.quantile(levels), expected)
    torch.testing.assert_close(found.quantile(0.5), expected[1])
    with pytest.raises(ValueError, match=r"q is 1.5; expected numbers in \[0, 1\]"):
        found.quantile(1.5)
    with pytest.raises(ValueError, match="no outputs were kept"):
        puredrop.DropoutEnsemble(model).predict(x, keep=0).quantile(0.5)


def test_memory_does_not_grow_with_members():
    """What is held of a batch: as many numbers after 4000 members as after 64."""
    sizes = []
    for members in (64, 4000):
        running = RunningStatistics(1, balanced=True, kept=64)
        for _ in range(members // 16):
            running.add(torch.rand(16, 3, 4))
        held = [one for one in (*vars(running).values(), *running.outputs) if isinstance(one, torch.Tensor)]
        sizes.append(sum(one.numel() for one in held))
    assert sizes[0] == sizes[1]


def test_the_confidence_sequence_holds_at_all_times():
    """600 runs of 400 rare events (.01), and of a beta; the truth leaves an interval, ever, in 5 % at most."""
    torch.manual_seed(0)
    for values in (
        (torch.rand(400, 600) < 0.01).double(),
        torch.distributions.Beta(0.3, 1.2).sample((400, 600)).double(),
    ):
        truth = 0.01 if values.max() == 1 and values.unique().numel() == 2 else 0.2
        sequence, missed = ConfidenceSequence(0.05), torch.zeros(600, dtype=torch.bool)
        for value in values:
            sequence.add(value[None])
            missed |= (sequence.lower > truth) | (sequence.upper < truth)
        assert missed.double().mean() <= 0.05
    assert 700 < expected_members(0.01, 0.05, 0.0) < 780  # 741 in theory 6


def test_a_tolerance_is_kept(capsys):
    """500 runs: the mean of all 2^6 members lies in the interval, and within the tolerance, in 95 % at least."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)), torch.randn(1, 2)
    model[3].weight.data *= 4
    ensemble = puredrop.DropoutEnsemble(model)
    truth, held, near = ensemble.exact(x), 0, 0
    for seed in range(500):
        one = puredrop.DropoutEnsemble(model, seed=seed)
        one._survey = ensemble._survey
        found = one.predict(x, tolerance=0.15, keep=0)
        assert (found.interval[..., 1] - found.interval[..., 0]).max() <= 0.3
        held += bool(((found.interval[..., 0] <= truth) & (truth <= found.interval[..., 1])).all())
        near += bool(((found.interval.mean(-1) - truth).abs() <= 0.15).all())
    assert held >= 475
    assert near >= 475
    said = capsys.readouterr().err
    assert "a tolerance of 0.15 takes" in said


def test_rows_stop_when_their_winner_is_certain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    x = torch.randn(30, 2) * torch.linspace(0.1, 8, 30)[:, None]
    ensemble = puredrop.DropoutEnsemble(model)
    found = ensemble.predict(x, until="top_class", max_members=600)
    assert found.members.min() < 200 <= 600 == found.members.max()
    assert "to 600 members" in repr(found)
    long = puredrop.DropoutEnsemble(model, balanced=False, seed=9).predict(x, members=8000)
    certain = found.members < 600
    assert torch.equal(found.mean.argmax(1)[certain], long.mean.argmax(1)[certain])
    for row in range(0, 30, 7):  # as that row alone, with as many members
        number = int(found.members[row])
        alone = puredrop.DropoutEnsemble(model, balanced=False).predict(x[row : row + 1], members=number)
        torch.testing.assert_close(found.mean[row], alone.mean[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.entropy[row], alone.entropy[0], rtol=1e-4, atol=1e-6)


def test_out_of_memory_goes_on_with_half_as_many(monkeypatch):
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model)
    expected = ensemble.predict(x, members=64)
    outputs = predictor.Engine.outputs

    def scarce(self, batch, numbers, first=0):
        if len(numbers) > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return outputs(self, batch, numbers, first)

    monkeypatch.setattr(predictor.Engine, "outputs", scarce)
    with pytest.warns(UserWarning, match="64 members at once did not fit into memory") as said:
        found = ensemble.predict(x, members=64)
    assert len(said) == 1
    torch.testing.assert_close(found.mean, expected.mean)


def test_progress_is_told(capsys):
    model, x = model_of("mlp")
    told = []
    puredrop.DropoutEnsemble(model).predict(x, members=32, batch_size=2, progress=lambda *done: told.append(done))
    assert told == [(row, members) for row in (0, 2, 4) for members in (16, 32)]
    puredrop.DropoutEnsemble(model).predict(x, members=16, progress=True)
    assert "16 members" in capsys.readouterr().err


def test_a_prediction_prints_and_is_a_table():
    model, x = model_of("mlp")
    found = puredrop.DropoutEnsemble(model).predict(x, members=32)
    lines = repr(found).splitlines()
    assert lines[0] == "5 rows, 32 members"
    assert lines[1].split("  ")[0] == "row"
    assert len(lines) == 2 + 5
    assert "<table>" in found._repr_html_()
    frame = found.frame()
    assert list(frame["label"]) == found.mean.argmax(1).tolist()
    np.testing.assert_allclose(frame[["mean_0", "mean_1", "mean_2"]], found.mean.numpy())
    regression = puredrop.DropoutEnsemble(model, "regression").predict(x, members=32)
    assert "±" in repr(regression)
    assert "label" not in regression.frame()


def test_a_prediction_is_handed_to_other_programs():
    model, x = model_of("mlp")
    prediction = puredrop.DropoutEnsemble(model).predict(x, members=16)
    assert "±" not in repr(prediction).replace("± se", "")
    assert "run members=32 or more" in repr(prediction)
    record = json.loads(prediction.to_json())
    assert record["members"] == 16
    assert record["rows"][0]["standard_error_0"] is None
    assert record["rows"][1]["mean_2"] == float(prediction.mean[1, 2])
    assert prediction.frame()["entropy"].tolist() == prediction.entropy.tolist()
    several = puredrop.DropoutEnsemble(model).predict(x, until="top_class", max_members=64)
    assert several.to_dict()["members"] == several.members.tolist()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_prediction_of_no_rows_prints_and_has_its_columns(task):
    model, x = model_of("mlp")
    found = puredrop.DropoutEnsemble(model, task).predict(x, members=32)
    none = found.rows(torch.tensor([], dtype=torch.int64))
    assert repr(none).startswith("0 rows, no members\nrow  ")
    assert "standard error" not in repr(none)
    assert "0 rows" in none._repr_html_()
    assert none.to_dict()["rows"] == none.records() == []
    assert [*none.frame().columns] == [*found.frame().columns, "members"]
