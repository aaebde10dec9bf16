"""Files that earlier code wrote: each loads with today's code, or is refused by name with the way out."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet
import pytest
import safetensors.torch
import torch
from torch import nn

import puredrop
from puredrop import _files
from puredrop.cli import main
from puredrop.compare import results, run

BEFORE = Path(__file__).parent / "data" / "formats" / "before"
COMPARE = ["compare", "digits", "--rows", "60", "--hidden", "4", "--rates", "0.5", "--seeds", "2", "--epochs", "2"]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.fixture
def rows():
    return torch.tensor(pd.read_csv(BEFORE / "rows.csv").to_numpy(), dtype=torch.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the old files, in which the command runs."""
    shutil.copytree(BEFORE, tmp_path / "before")
    (tmp_path / "before" / "old_nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))\n"
    )
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def refused(capsys, code, message):
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error


def test_a_runs_state_goes_on_with_the_same_masks(rows):
    model = puredrop.convert(net())
    pinned = puredrop.reproducible(model, seed=3, name="before")
    pinned.load_state_dict(json.loads((BEFORE / "run_state.json").read_text()))
    kept = []
    model[0].register_forward_hook(lambda module, given, output: torch.ones_like(output))
    model[2].register_forward_hook(lambda module, given, output: kept.append(output.ne(0).int().tolist()))
    model(rows)
    assert kept == [json.loads((BEFORE / "run_masks.json").read_text())]
    assert pinned.step == 3


def test_a_runs_state_of_another_format_is_refused_by_name():
    pinned = puredrop.reproducible(puredrop.convert(net()), seed=3, name="before")
    state = json.loads((BEFORE / "run_state.json").read_text())
    with pytest.raises(ValueError, match=r"version is 7, this run's is 1"):
        pinned.load_state_dict({**state, "version": 7})
    with pytest.raises(ValueError, match=r"format is 7, this run's is 1"):
        pinned.load_state_dict({**pinned.state_dict(), "format": 7})
    without = {name: value for name, value in state.items() if name != "version"}
    with pytest.raises(ValueError, match=r"format is None, this run's is 1"):
        pinned.load_state_dict(without)


def test_a_runs_state_names_its_format_as_files_do():
    pinned = puredrop.reproducible(puredrop.convert(net()), seed=3, name="before")
    pinned.load_state_dict(json.loads((BEFORE / "run_state.json").read_text()))
    state = pinned.state_dict()
    assert state == {"format": 1, "seed": 3, "name": "before", "step": 3, "tally": [0, 0, 0]}
    pinned.advance()
    pinned.load_state_dict(state)
    assert pinned.step == 3


def test_a_frozen_ensemble_is_a_graph_without_our_classes(rows):
    try:
        program = torch.export.load(BEFORE / "frozen.pt2")
    except (RuntimeError, KeyError) as error:  # of a torch that is older than the one that wrote it
        pytest.skip(f"torch {torch.__version__} cannot read what torch 2.13 exported: {error}")
    mean = program.module()(rows)[0]
    torch.testing.assert_close(mean, torch.tensor(json.loads((BEFORE / "frozen_mean.json").read_text())))
    again = puredrop.DropoutEnsemble(net()).freeze(rows, members=2)(rows)[0]
    torch.testing.assert_close(again, mean)


def test_the_state_of_a_frozen_ensemble_loads(rows):
    frozen = puredrop.DropoutEnsemble(net()).freeze(rows, members=2)
    state = torch.load(BEFORE / "frozen_state.pt", weights_only=True)
    assert list(state) == list(frozen.state_dict())
    for value in frozen.state_dict().values():
        value.fill_(torch.nan)
    frozen.load_state_dict(state)
    mean = torch.tensor(json.loads((BEFORE / "frozen_mean.json").read_text()))
    torch.testing.assert_close(frozen(rows)[0], mean)


def test_an_unfinished_run_is_refused_by_name(folder, capsys):
    (folder / "stopped").mkdir()
    shutil.copy("checkpoint.safetensors", "stopped")
    message = r"checkpoint.safetensors has no format number, expected format 1: another version .*delete the file"
    refused(capsys, main([*COMPARE, "--out", "stopped", "--resume"]), message)
    with safetensors.safe_open("stopped/checkpoint.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    assert set(state) == {"identity", "threads", "arms"}


def test_a_finished_run_is_refused_by_name(folder, capsys):
    message = r"compare/results.json has format 1, expected format 2: another version wrote .*run compare again"
    refused(capsys, main(["explain", "compare"]), message)
    refused(capsys, main([*COMPARE, "--out", "compare", "--resume"]), message)


def test_the_weights_of_a_finished_run_load():
    weights = safetensors.torch.load_file(BEFORE / "compare" / "weights-dropout.safetensors")
    model = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 10))
    model.load_state_dict({name: value[1] for name, value in weights.items()})


def test_an_unfinished_job_of_predict_is_refused_by_name(folder, capsys):
    line = ["predict", "old_nets:net", "rows.csv", "--members", "4", "--part-rows", "2", "--out", "unfinished.parquet"]
    message = r"job.json has no format number, expected format 1: .*delete unfinished.parquet.parts"
    refused(capsys, main(line), message)
    shutil.rmtree("unfinished.parquet.parts")
    assert main(line) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("unfinished.parquet"), pd.read_parquet("predictions.parquet"))
    assert parquet.read_schema("unfinished.parquet").metadata[b"puredrop.format"] == b"1"
    assert b"puredrop.format" not in parquet.read_schema("predictions.parquet").metadata


def test_what_is_written_names_its_format(folder, monkeypatch):
    without = run.Explanation("", (), (), {"model": "not in this test"})
    monkeypatch.setattr(run, "analyse", lambda subject, exclude: without)
    assert main([*COMPARE, "--out", "new"]) == 0
    assert json.loads(Path("new/results.json").read_text())["format"] == results.FORMAT
    assert main(["explain", "new", "--members", "16"]) == 0
    assert json.loads(Path("new/explain.json").read_text())["format"] == 1
    _files.save_checkpoint(Path("new.safetensors"), {}, {})
    with safetensors.safe_open("new.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == str(_files.CHECKPOINT_FORMAT)
