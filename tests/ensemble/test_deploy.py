"""Single members and frozen ones: ordinary modules that give what the ensemble's members give, saved and exported."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn

import puredrop
from dropping import model_of
from puredrop.ensemble.export import FROZEN_FORMAT

LAYERED = ["mlp", "input dropout", "convolutions", "residual"]


def samples_of(ensemble, x, number):
    return ensemble.predict(x, members=number + 1, keep=number + 1).outputs[number]


@pytest.mark.parametrize("name", LAYERED)
def test_a_member_gives_what_the_ensemble_says(name):
    model, x = model_of(name)
    before = copy.deepcopy(model.state_dict())
    ensemble = puredrop.DropoutEnsemble(model, seed=2)
    for number in (0, 17):
        member = ensemble.member(number, x)
        assert not member.training
        torch.testing.assert_close(member(x).softmax(1), samples_of(ensemble, x, number), rtol=1e-4, atol=1e-5)
        assert not any(puredrop.nn.element.Dropout in type(one).__mro__ for one in member.modules())
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.zero_()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "a member's weights are its own"


def test_a_member_is_smaller_where_units_are_whole():
    model, x = model_of("mlp")
    member = puredrop.DropoutEnsemble(model).member(3, x)
    kinds = [type(layer) for layer in member]
    assert kinds == [nn.Linear, nn.ReLU, nn.Identity, nn.Linear, nn.GELU, nn.Identity, nn.Linear]
    assert member[0].out_features == member[3].in_features < 32
    assert member[3].out_features == member[6].in_features < 24
    assert member[0].weight.shape == (member[0].out_features, 6)


def test_a_member_is_saved_and_loaded(tmp_path):
    model, x = model_of("convolutions")
    member = puredrop.DropoutEnsemble(model).member(5, x)
    torch.save(member.state_dict(), tmp_path / "member.pt")
    other = puredrop.DropoutEnsemble(model).member(5, x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(torch.load(tmp_path / "member.pt", weights_only=True))
    assert torch.equal(other(x), member(x))


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", LAYERED)
def test_frozen_members_give_mean_and_variance(name, task):
    model, x = model_of(name)
    ensemble = puredrop.DropoutEnsemble(model, task)
    mean, variance = ensemble.freeze(x, members=16)(x)
    expected = ensemble.predict(x, members=16)
    torch.testing.assert_close(mean.double(), expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance.double(), expected.variance, rtol=1e-3, atol=1e-6)


def test_frozen_members_share_what_is_the_same():
    model, x = model_of("convolutions")
    frozen = puredrop.DropoutEnsemble(model).freeze(x, members=4)
    norms = [one[1].weight for one in frozen.members]
    assert all(one is norms[0] for one in norms)
    assert norms[0] is not model[1].weight


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_frozen_members_are_exported(name, tmp_path):
    model, x = model_of(name)
    frozen = puredrop.DropoutEnsemble(model).freeze(x, members=8)
    expected = frozen(x)
    program = torch.export.export(frozen, (x,))
    for found, wanted in zip(program.module()(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.export.save(program, tmp_path / "frozen.pt2")
    loaded = torch.export.load(tmp_path / "frozen.pt2")
    # Torch 2.6 leaves out of the program what no operator reads.
    assert int(loaded.constants.get("frozen_format", FROZEN_FORMAT)) == FROZEN_FORMAT
    frozen.load_state_dict(loaded.state_dict)
    torch.onnx.export(frozen, (x,), tmp_path / "frozen.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "frozen.onnx")
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-6)


def test_a_frozen_state_knows_its_format(tmp_path):
    model, x = model_of("mlp")
    frozen = puredrop.DropoutEnsemble(model).freeze(x, members=2)
    torch.save(frozen.state_dict(), tmp_path / "frozen.pt")
    state = torch.load(tmp_path / "frozen.pt", weights_only=True)
    assert not any("format" in name for name in state)
    frozen.load_state_dict(state)
    frozen.load_state_dict(dict(state))  # without metadata
    state._metadata[""]["version"] = 99
    with pytest.raises(ValueError, match=r"frozen_format is 99; expected 1: .* call freeze"):
        frozen.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("functions", r":dropout0 drops and is no dropout layer"),
        ("recurrent", r"lstm/1 drops and is no dropout layer"),
        ("encoder", r"self_attn drops and is no dropout layer"),
        ("twice", r"drop is used several times"),
        ("other noise", r"1 draws more than decisions"),
    ],
)
def test_what_no_mask_can_stand_for_is_refused(name, message):
    model, x = model_of(name)
    with pytest.raises(ValueError, match=message):
        puredrop.DropoutEnsemble(model).member(0, x)


def test_bad_numbers():
    model, x = model_of("mlp")
    ensemble = puredrop.DropoutEnsemble(model)
    with pytest.raises(RuntimeError, match="the ensemble has seen no rows yet"):
        ensemble.member(0)
    with pytest.raises(ValueError, match="a member's number is -1"):
        ensemble.member(-1, x)
    with pytest.raises(TypeError, match=r"a member's number is 1\.5"):
        ensemble.member(1.5, x)
    with pytest.raises(ValueError, match="members is 0"):
        ensemble.freeze(x, members=0)
    with pytest.raises(ValueError, match="masks is 'independent'"):
        puredrop.DropoutEnsemble(model, masks="independent").member(0, x)
