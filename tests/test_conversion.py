import json
import sys

import pytest
import torch
from torch import nn

import puredrop
from puredrop import Key, convert, revert


class Own(nn.Dropout):
    """A user's subclass: it may do anything."""


def model():
    shared = nn.Dropout(0.2)
    net = nn.Sequential(
        nn.Conv1d(3, 4, 1),
        nn.Dropout1d(0.1),
        nn.Sequential(nn.Dropout2d(0.3, inplace=True), nn.Dropout3d(0.4)),
        shared,
        shared,
        Own(0.6),
    )
    net.add_module("empty", None)
    return net


def test_convert_and_revert_keep_everything_but_the_class():
    net, calls = model(), []
    net[3].register_forward_hook(lambda *arguments: calls.append("hook"))
    net[2][1].eval()
    keys = list(net.state_dict())
    same = convert(net)
    assert same is net
    kinds = [type(m).__module__.split(".")[0] for m in net.modules() if "Dropout" in type(m).__name__]
    assert kinds == ["puredrop"] * 4
    assert type(net[5]) is Own
    assert net[3] is net[4]
    assert (net[2][0].p, net[2][0].inplace, net[2][1].training, net[2][0].training) == (0.3, True, False, True)
    assert list(net.state_dict()) == keys
    net[3](torch.ones(3))
    assert calls == ["hook"]
    net[1].key = Key(3)
    assert "Key(3)" in repr(net)
    revert(net)
    assert repr(net) == repr(model())
    assert net[3] is net[4]
    assert not hasattr(net[1], "key")
    net[3](torch.ones(3))
    assert calls == ["hook", "hook"]


def test_copies_and_a_layer_that_is_the_model():
    net = model()
    other = convert(net, inplace=False)
    assert type(net[1]) is nn.Dropout1d
    assert type(other[1]) is puredrop.nn.Dropout1d
    assert type(revert(other, inplace=False)[1]) is nn.Dropout1d
    assert type(other[1]) is puredrop.nn.Dropout1d
    layer = nn.Dropout(0.7).eval()
    ours = convert(layer)
    assert type(ours) is puredrop.nn.Dropout
    assert (ours.p, ours.training, ours.key, ours.shared_dims) == (0.7, False, None, ())
    assert type(revert(ours)) is nn.Dropout


def test_revert_names_what_torch_has_no_equal_of_and_changes_nothing():
    net = nn.Sequential(puredrop.nn.Dropout(0.1), nn.Sequential(puredrop.nn.Dropout(0.5, shared_dims=(1,))))
    with pytest.raises(ValueError, match=r"1.0 has shared_dims=\(1,\), which torch.nn.Dropout lacks"):
        revert(net)
    assert type(net[0]) is puredrop.nn.Dropout


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_after_revert():
    net = convert(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Dropout1d(0.5)))
    with pytest.raises(
        RuntimeError, match=r"TorchScript cannot hold puredrop's Dropout; call puredrop.revert\(model\)"
    ):
        torch.jit.script(net)
    scripted = torch.jit.script(revert(net).eval())
    x = torch.randn(2, 3)
    assert torch.equal(scripted(x), net(x))


@pytest.mark.parametrize("call", [puredrop.convert, puredrop.batchwise])
@pytest.mark.parametrize("name", ["seed", "key"])
def test_a_seed_belongs_to_reproducible(call, name):
    with pytest.raises(
        TypeError, match=rf"{call.__name__} has no argument {name}; .*puredrop\.reproducible\(model, seed="
    ):
        call(model(), **{name: 1})


def test_a_report_for_other_programs():
    _, report = convert(model(), report=True)
    assert json.loads(report.to_json()) == report.to_dict()
    assert list(report.frame()["path"]) == [*report.replaced, *report.skipped]
    assert report.to_dict()["skipped"] == report.skipped != {}


def test_a_frame_without_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"puredrop\[study\]"):
        convert(model(), report=True)[1].frame()


def test_revert_reports_what_it_exchanged():
    net = convert(model())
    linear = nn.Linear(3, 4)
    net.append(puredrop.nn.drop_connect(linear, p=0.5))
    net.append(nn.Linear(4, 4))
    same, report = revert(net, report=True)
    assert same is net
    assert report.replaced == {
        "1": ("Dropout1d", "torch Dropout1d"),
        "2.0": ("Dropout2d", "torch Dropout2d"),
        "2.1": ("Dropout3d", "torch Dropout3d"),
        "3": ("Dropout", "torch Dropout"),
        "7.parametrizations.weight.0": ("DropConnect", "torch Parameter"),
    }
    assert report.skipped == {"5": f"{Own.__module__}.Own is not a layer of puredrop"}
    assert "1: puredrop.nn.Dropout1d -> torch Dropout1d" in repr(report).splitlines()
    assert list(report.frame()["new"]) == [*(new for _, new in report.replaced.values()), ""]
    assert [type(module) for module in net.modules() if "puredrop" in type(module).__module__] == []


def test_revert_reports_layers_that_ran_batchwise_and_leaves_the_original():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    puredrop.batchwise(net)
    kinds = [type(module) for module in net]
    other, report = revert(net, inplace=False, report=True)
    assert [type(module) for module in net] == kinds
    assert [type(module) for module in other] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert report.replaced["0"] == ("batchwise Linear", "torch Linear")
    assert sorted(report.replaced) == ["0", "2", "3"]


@pytest.mark.parametrize("call", [convert, revert])
def test_what_is_no_model_is_named(call):
    with pytest.raises(TypeError, match=r"model is str; expected a torch\.nn\.Module"):
        call("model")
    with pytest.raises(TypeError, match=r"model is dict; expected a torch\.nn\.Module"):
        call({}, report=True)
