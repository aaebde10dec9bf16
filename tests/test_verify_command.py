"""`puredrop verify`: what it says of a file, and its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from puredrop import _files
from puredrop.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of ours and from elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "deep").mkdir(parents=True)
    _files.write_json(tmp_path / "run" / "results.json", {"nll": [0.5]})
    _files.write_tensors(tmp_path / "run" / "deep" / "weights.safetensors", {"w": torch.randn(3, 3)})
    _files.write_page(tmp_path / "run" / "report.html", "<!doctype html>\n<html></html>\n")
    pd.DataFrame({"a": [1.5]}).to_parquet(tmp_path / "run" / "other.parquet")
    safetensors.torch.save_file({"w": torch.randn(2)}, tmp_path / "run" / "other.safetensors")
    (tmp_path / "run" / "other.json").write_text(json.dumps([1, 2]))
    (tmp_path / "run" / "other.html").write_text("<html></html>")
    (tmp_path / "run" / "notes.txt").write_text("not looked at")
    return tmp_path / "run"


def states(said):
    return {line.split()[0]: " ".join(line.split()[2:]) for line in said.splitlines()[1:]}


def test_it_says_of_each_file_whether_it_is_right(folder, capsys):
    assert main(["verify", "run"]) == 0
    said = capsys.readouterr().out
    right = ["run/results.json", "run/deep/weights.safetensors", "run/report.html"]
    wanted = {**dict.fromkeys(right, "right")}
    wanted |= {f"run/other.{suffix}": "no checksum" for suffix in ("html", "json", "parquet", "safetensors")}
    assert states(said) == wanted
    assert [line.split()[1] for line in said.splitlines() if "results.json" in line] == ["results"]


@pytest.mark.parametrize("end", [0, 3, -1])
def test_a_file_that_is_cut_is_corrupt_whoever_wrote_it(folder, end, capsys):
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".html", ".parquet", ".safetensors")]
    assert len(files) == 7
    for path in files:
        path.write_bytes(path.read_bytes()[: end - 7 if end < 0 else end])
    assert main(["verify", "run"]) == 1
    assert set(states(capsys.readouterr().out).values()) == {"corrupt"}


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["none"], "none: no such file or folder"),
        (["empty"], "empty has no file that puredrop writes (.json, .html, .parquet, .safetensors)"),
        ([], "the following arguments are required: PATH"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(folder, paths, says, capsys):
    (folder.parent / "empty").mkdir()
    try:
        code = main(["verify", *paths])
    except SystemExit as error:
        code = error.code
    assert code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert says in error


def test_weights_that_moved_elsewhere_are_checked_when_they_load(folder, capsys):
    (folder.parent / "moved_nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 3), nn.Dropout())\n"
    )
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout())
    _files.write_tensors(folder / "w.safetensors", net.state_dict())
    pd.DataFrame(torch.randn(5, 4).numpy(), columns=list("abcd")).to_csv("rows.csv", index=False)
    line = ["predict", "moved_nets:net", "rows.csv", "--members", "4", "--weights", "run/w.safetensors", "--out"]
    assert main([*line, "a.parquet"]) == 0
    data = bytearray((folder / "w.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "w.safetensors").write_bytes(data)
    capsys.readouterr()
    assert main([*line, "b.parquet"]) == 2
    assert "w.safetensors is corrupt (its checksum is wrong); fetch or make it again" in capsys.readouterr().err
    sys.modules.pop("moved_nets", None)


def test_an_output_that_is_full_or_closed_is_no_traceback(folder):
    line = [sys.executable, "-m", "puredrop", "verify", "run"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "puredrop verify: error: [Errno 28] No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
