"""`puredrop predict`: the file it writes, on one process or two, stopped and started again."""

import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import processes
import puredrop
from puredrop.cli import main

FACTORY = """
import time

import torch
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))

    def forward(self, x):
        time.sleep(0.3)
        return self.layers(x)


def net():
    torch.manual_seed(0)
    return Slow().layers


def slow():
    torch.manual_seed(0)
    return Slow()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_predicted_nets.py").write_text(FACTORY)
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    pd.DataFrame(x, columns=list("abcd")).assign(name="row").to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_predicted_nets", None)


def command(*arguments):
    return ["predict", "my_predicted_nets:net", "rows.csv", *arguments]


def expected(folder, samples=32, inside=None, **options):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 3)]
    x = pd.read_csv(folder / "rows.csv")[list("abcd")].to_numpy(np.float32)
    net = torch.nn.Sequential(*layers)
    net = net if inside is None else torch.nn.Sequential(OrderedDict({inside: net}))  # masks follow a site's path
    return puredrop.DropoutEnsemble(net, **options).predict(x, members=samples)


@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_rows_in_their_order_with_the_ensembles_figures(folder, masks, capsys):
    assert main(command("--out", "out.parquet", "--members", "32", "--part-rows", "30", "--masks", masks)) == 0
    found = pd.read_parquet("out.parquet")
    wanted = expected(folder, masks=masks)
    assert list(found["row"]) == list(range(100))
    np.testing.assert_allclose(found[["mean_0", "mean_1", "mean_2"]], wanted.mean.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["mutual_information"], wanted.mutual_information.numpy(), rtol=1e-3, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir() if "out" in path.name) == ["out.parquet"]
    assert "100 rows, 32 members each: out.parquet" in capsys.readouterr().err


def test_a_killed_run_goes_on(folder):
    line = [sys.executable, "-m", "puredrop", "predict", "my_predicted_nets:slow", "rows.csv", "--out", "out.parquet"]
    line += ["--members", "32", "--part-rows", "10"]
    process = subprocess.Popen(line, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = folder / "out.parquet.parts"
    while process.poll() is None and len(list(parts.glob("0*.parquet"))) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert 3 <= len(there) < 10
    assert not (folder / "out.parquet").exists()
    again = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    assert f"going on with {len(there)} of 10 parts" in again.stderr
    found = pd.read_parquet(folder / "out.parquet")
    assert list(found["row"]) == list(range(100))
    wanted = expected(folder, inside="layers").mean.numpy()
    np.testing.assert_allclose(found[["mean_0", "mean_1", "mean_2"]], wanted, rtol=1e-5, atol=1e-7)


def test_another_job_in_the_same_place_is_refused(folder, capsys):
    parts = folder / "out.parquet.parts"
    parts.mkdir()
    for state, message in (
        ('{"format": 1}', "holds an unfinished job with another model, data or options"),
        ("{}", "job.json has no format number, expected format 1"),
    ):
        (parts / "job.json").write_text(state)
        assert main(command("--out", "out.parquet")) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in parts.iterdir()) == ["job.json"]


def test_processes_share_the_rows(folder):
    assert main(command("--out", "one.parquet", "--members", "16", "--part-rows", "30")) == 0
    line = ["--module", "puredrop", *command("--out", "two.parquet", "--members", "16", "--part-rows", "30")]
    processes.run(*line, size=2, cwd=folder, check=True)
    pd.testing.assert_frame_equal(pd.read_parquet("two.parquet"), pd.read_parquet("one.parquet"), rtol=1e-5, atol=1e-7)


def test_weights_and_columns(folder):
    torch.manual_seed(5)
    other = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 3))
    safetensors.torch.save_file(other.state_dict(), "weights.safetensors")
    options = ("--weights", "weights.safetensors", "--columns", "d,c,b,a", "--members", "16")
    assert main(command("--out", "out.parquet", *options)) == 0
    x = pd.read_csv("rows.csv")[list("dcba")].to_numpy(np.float32)
    wanted = puredrop.DropoutEnsemble(other).predict(x, members=16).mean.numpy()
    found = pd.read_parquet("out.parquet")[["mean_0", "mean_1", "mean_2"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command("--out", "out.csv"), "--out is 'out.csv'; expected a file named .parquet"),
        (command("--out", "rows.parquet", "--columns", "a,z"), "has no column 'z'; it has a, b, c, d, name"),
        (command("--out", "out.parquet", "--members", "0"), "--members is 0; expected 1 or more"),
        (command("--out", "out.parquet", "--columns", "a,b"), "mat1 and mat2 shapes cannot be multiplied"),
        (["predict", "nowhere:net", "rows.csv", "--out", "o.parquet"], "cannot import nowhere"),
        (["predict", "my_predicted_nets:net", "no.csv", "--out", "o.parquet"], "DATA 'no.csv' is no file"),
    ],
)
def test_errors_are_one_line(folder, arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(folder.glob("*.parquet"))
