import json
import re
import sys

import pytest
import torch
from torch import nn

from puredrop import Key, functional
from puredrop.cli import main
from puredrop.compare.data import load
from puredrop.compare.models import load_model
from puredrop.compare.training import Arm, train

pytestmark = pytest.mark.usefixtures("unexplained")

SOURCE = """
import torch
from torch import nn
import torch.nn.functional as F

def plain():
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Dropout(0.4), nn.Linear(20, 10))

def normed():
    return nn.Sequential(nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.4), nn.Linear(20, 10))

class Looking(nn.Sequential):
    # What it does depends on values, which vmap cannot follow.
    def forward(self, x):
        return super().forward(-x if x.sum().item() < -1e9 else x)

def looking():
    return Looking(*normed())

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        x = x.view(len(x), 8, 8)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.recurrent(x)[0][:, -1])

class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(64, 9), nn.Dropout(0.1), nn.Linear(9, 10)
    def forward(self, x):
        return self.b(F.dropout(self.drop(self.a(x)), 0.25, self.training))

class Hidden(Functional):
    def forward(self, x):
        h = self.drop(self.a(x))
        return self.b(h * (torch.rand_like(h) > 0.3) if self.training else h)

class Wide(Functional):
    def forward(self, x):
        return self.drop(self.a(x))

class Broken(Functional):
    def forward(self, x):
        return self.b(self.drop(x))

class Tuple(Functional):
    def forward(self, x):
        return (x,)

def undropped():
    return nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.0))

def needy(width):
    return nn.Linear(width, 10)

def number():
    return 3

def frozen():
    model = plain()
    model[0].requires_grad_(False)
    return model

constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The user's working folder with a module in it."""
    (tmp_path / "usermodels.py").write_text(SOURCE)
    (tmp_path / "brokenmodels.py").write_text("import torch\nraise ValueError('no luck')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("usermodels", "brokenmodels"):
        sys.modules.pop(name, None)
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return load("digits", rows=240)


def test_sites_are_found_and_silenced(digits):
    model, notes = load_model("usermodels:Attention", digits)
    assert set(model.sites) == {"attention", "recurrent"}
    assert notes[0].startswith("model usermodels:Attention: ")
    assert "dropout in attention, recurrent" in notes[0]
    assert (model.plain.attention.dropout, model.plain.recurrent.dropout) == (0.0, 0.0)
    assert (model.dropping.attention.dropout, model.dropping.recurrent.dropout) == (0.3, 0.2)


@pytest.mark.parametrize("name", ["plain", "normed", "looking"])
def test_every_seed_is_the_users_model(digits, name):
    model, notes = load_model(f"usermodels:{name}", digits)
    assert model.batched == (name != "looking")
    assert any("cannot be batched" in note for note in notes) == (name == "looking")
    parameters, x = model.initial(range(3)), digits.test.x[:9].expand(3, -1, -1)
    outputs = model.outputs(parameters, x)
    for seed in range(3):
        torch.manual_seed(int(Key(seed).fold_in("init")))
        own = sys.modules["usermodels"].__dict__[name]().eval()
        torch.testing.assert_close(outputs[seed], own(x[seed]))
        assert torch.equal(parameters["0.weight"][seed], own[0].weight)


def test_masks_depend_on_the_key_and_the_seed_alone(digits):
    model, _ = load_model("usermodels:plain", digits)
    parameters = {name: v[:1].expand(2, *v.shape[1:]) for name, v in model.initial(range(1)).items()}
    x = digits.test.x[:50].expand(2, -1, -1)
    state = torch.get_rng_state()
    first = model.outputs(parameters, x, Key(1), training=True)
    torch.rand(3)
    assert torch.equal(first, model.outputs(parameters, x, Key(1), training=True))
    assert not torch.equal(first, model.outputs(parameters, x, Key(2), training=True))
    assert not torch.equal(first[0], first[1])
    torch.set_rng_state(state)
    model.outputs(parameters, x, Key(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["normed", "looking"])
def test_a_member_drops_without_dragging_batchnorm_along(digits, name):
    model, _ = load_model(f"usermodels:{name}", digits)
    parameters = model.initial(range(2))
    before = {name: value.clone() for name, value in parameters.items()}
    x = digits.test.x.expand(2, -1, -1)
    with torch.no_grad():
        members = model.outputs(parameters, x, Key(1))
        assert all(torch.equal(before[name], value) for name, value in parameters.items())
        assert not torch.equal(members, model.outputs(parameters, x))
        model.outputs(parameters, x, training=True)  # in training its statistics do move
    assert not torch.equal(before["1.running_mean"], parameters["1.running_mean"])


@pytest.mark.parametrize("name", ["plain", "normed", "looking", "frozen", "Attention"])
def test_it_trains_and_resumes_to_the_same_bits(digits, name):
    model, _ = load_model(f"usermodels:{name}", digits)
    start = Arm.start(model, range(2), digits.train.x, dropout=True)
    initial = {key: value.clone() for key, value in start.current.items()}
    halted = {}

    def on_epoch(arm):
        if arm.epoch == 1:
            halted["tensors"] = {key: value.detach().clone() for key, value in arm.tensors().items()}
            halted["state"] = json.loads(json.dumps(arm.state()))

    train(start, model, digits, range(2), 3, on_epoch)
    resumed = Arm.restore(halted["tensors"], halted["state"], torch.device("cpu"))
    train(resumed, model, digits, range(2), 3)
    assert resumed.validation_loss == start.validation_loss
    assert all(torch.equal(resumed.best[key], value) for key, value in start.best.items())
    moved = {key for key, value in start.best.items() if not torch.equal(value, initial[key])}
    assert ("0.weight" in moved) == (name in ("plain", "normed", "looking"))
    assert moved


@pytest.mark.parametrize("name", ["plain", "looking"])
def test_the_command_with_a_model_of_the_users(module, capsys, name):
    command = ["compare", "digits", "--model", f"usermodels:{name}", "--rows", "240", "--seeds", "2", "--epochs", "3"]
    assert main(command) == 0
    _, err = capsys.readouterr()
    assert f"model usermodels:{name}: " in err
    results = json.loads((module / "runs/digits/results.json").read_text())
    assert results["identity"]["model"] == f"usermodels:{name}"
    page = (module / "runs/digits/report.html").read_text()
    assert f"--model usermodels:{name} --epochs 3" in page
    assert main([*command, "--resume"]) == 0
    assert main([*command[:3], "usermodels:frozen", *command[4:], "--resume"]) == 0  # another model is another run


BAD = {
    "plain": r"--model is 'plain'; expected module:factory",
    "nowhere:plain": r"cannot import nowhere \(ModuleNotFoundError",
    "brokenmodels:plain": r"cannot import brokenmodels \(ValueError: no luck\)",
    "usermodels:missing": r"usermodels has no function or class 'missing'",
    "usermodels:constant": r"usermodels has no function or class 'constant'",
    "usermodels:needy": r"needy\(\) missing 1 required positional argument: 'width'; expected a factory that needs no arguments",
    "usermodels:number": r"the factory gave int; expected a torch.nn.Module",
    "usermodels:undropped": r"no module with a dropout rate above 0",
    "usermodels:Functional": r"functional dropout cannot be switched off .*dropout\(p=0.25\) at usermodels.py:\d+",
    "usermodels:Hidden": r"draws random numbers with every known rate at 0",
    "usermodels:Wide": r"classification needs an output of shape \(2, 10\) for input \(2, 64\), got \(2, 9\)",
    "usermodels:Tuple": r"got tuple",
    "usermodels:Broken": r"fails on input of shape \(2, 64\) \((addmm: )?mat1 and mat2",
}


@pytest.mark.parametrize("spec", list(BAD))
def test_bad_models_are_one_line_exit_2_and_nothing_written(module, capsys, spec):
    before = sorted(path for path in module.iterdir() if path.name != "__pycache__")
    assert main(["compare", "digits", "--model", spec]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(BAD[spec], err), err
    assert sorted(path for path in module.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize("option", [["--hidden", "8"], ["--rates", "0.1,0.1"], ["--input-rate", "0.2"]])
def test_options_of_the_built_in_network_are_not_passed_over(module, capsys, option):
    assert main(["compare", "digits", "--model", "usermodels:plain", *option]) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"{option[0]} is for the built-in network, but --model is given; drop the option\n")


def test_the_users_layers_become_ours_only_inside(digits):
    from puredrop.nn import Dropout

    model, _ = load_model("usermodels:plain", digits)
    assert isinstance(model.dropping[2], Dropout)
    assert type(model.factory()[2]) is nn.Dropout


def test_groups_run_the_users_model_batchwise(digits):
    """Fewer rows than groups have a mask each, as without groups."""
    model, _ = load_model("usermodels:plain", digits, 3)
    assert model.batched
    parameters, x, key = model.initial(range(2)), digits.test.x[:12].expand(2, -1, -1), Key(4)
    found = model.outputs(parameters, x, key, training=True, groups=3)
    for seed in range(2):
        own = model.factory()
        own.load_state_dict({name: value[seed] for name, value in parameters.items()})
        torch.manual_seed(int(key.fold_in(seed)))
        hidden = functional.dropout(torch.relu(own[0](x[seed])), 0.4, sample_ids=torch.arange(12) // 4 * 4)
        torch.testing.assert_close(found[seed], own[3](hidden))
    few = x[:, :2]
    assert torch.equal(
        model.outputs(parameters, few, key, training=True, groups=3), model.outputs(parameters, few, key, training=True)
    )


def test_a_users_model_with_nothing_to_compact(module, capsys):
    code = main(["compare", "digits", "--model", "usermodels:Attention", "--arms", "none,dropout,batchwise"])
    err = capsys.readouterr().err
    assert code == 2
    assert "--model usermodels:Attention, --arms batchwise: model has nothing to compact" in err
    assert len(err.splitlines()) == 1
