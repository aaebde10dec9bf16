"""`puredrop predict`: the file it writes, on one process or two, stopped and started again."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import processes
import puredrop
from puredrop._folders import output_folder
from puredrop.cli import main, predict_job

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


PARTS = ("--members", "8", "--part-rows", "30")


def test_a_corrected_command_takes_the_place_of_one_that_failed(folder, capsys):
    line = command("--out", "out.parquet", *PARTS)
    assert main([*line, "--columns", "a,b"]) == 2  # fails on the first part: nothing is left
    assert not (folder / "out.parquet.parts").exists()
    (folder / "my_predicted_nets.py").write_text(
        FACTORY + "\n\nclass Choosy(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.layers = net()\n\n"
        "    def forward(self, x):\n        if (x[..., 0] == 77).any():\n            raise ValueError('77 is no row')\n"
        "        return self.layers(x)\n\n\ndef choosy():\n    return Choosy()\n"
    )  # fmt: skip
    sys.modules.pop("my_predicted_nets", None)
    table = pd.read_csv("rows.csv")
    table.assign(a=table["a"].where(table.index != 80, 77)).to_csv("bad.csv", index=False)
    bad = ["predict", "my_predicted_nets:choosy", "bad.csv", "--out", "out.parquet", *PARTS]
    assert main(bad) == 2  # fails on the third part
    assert "77 is no row" in capsys.readouterr().err
    assert len(list((folder / "out.parquet.parts").glob("0*.parquet"))) == 2
    assert main([bad[0], bad[1], "rows.csv", *bad[3:]]) == 0
    assert list(pd.read_parquet("out.parquet")["row"]) == list(range(100))
    assert sorted(path.name for path in folder.glob("out*")) == ["out.parquet"]


def test_a_job_with_parts_that_did_not_fail_is_kept(folder, monkeypatch, capsys):
    write, count = predict_job.write, iter(range(9))

    def full(path, data):
        if next(count) == 2:
            raise OSError(28, "No space left on device")
        write(path, data)

    line = command("--out", "out.parquet", *PARTS)
    with monkeypatch.context() as patch:
        patch.setattr(predict_job, "write", full)
        assert main(line) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "No space left on device" in error
    assert main([*line, "--columns", "d,c,b,a"]) == 2
    assert "holds an unfinished job with another model, data or options" in capsys.readouterr().err
    assert main(line) == 0
    assert "going on with 2 of 4 parts" in capsys.readouterr().err
    assert sorted(path.name for path in folder.glob("out*")) == ["out.parquet"]


def test_a_changed_part_is_predicted_again_and_the_file_is_sealed(folder, monkeypatch, capsys):
    line = command("--out", "out.parquet", *PARTS)
    assert main(line) == 0
    whole = pd.read_parquet("out.parquet")
    assert main(["verify", "out.parquet"]) == 0
    assert "right" in capsys.readouterr().out
    (folder / "out.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(predict_job.PredictJob, "_join", interrupted)
        assert main(line) == 130
    parts = sorted((folder / "out.parquet.parts").glob("0*.parquet"))
    chance = np.random.default_rng(0)
    for part, at in ((parts[0], chance.integers(4, 200)), (parts[2], -40)):
        data = bytearray(part.read_bytes())
        data[at] ^= 16
        part.write_bytes(data)
    assert main(line) == 0
    assert capsys.readouterr().err.count("is not what was written; its rows are predicted again") == 2
    pd.testing.assert_frame_equal(pd.read_parquet("out.parquet"), whole)


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_run_killed_before_its_parts_were_deleted_ends_well(folder, monkeypatch):
    line = command("--out", "out.parquet", *PARTS)
    with monkeypatch.context() as patch:
        patch.setattr(predict_job.PredictJob, "_clean", interrupted)
        assert main(line) == 130
    assert {path.name for path in folder.glob("out*")} == {"out.parquet", "out.parquet.parts"}
    assert main(line) == 0
    assert sorted(path.name for path in folder.glob("out*")) == ["out.parquet"]
    assert main(line) == 2


def test_two_runs_at_once_and_outputs_that_cannot_be(folder, capsys):
    line = command("--out", "out.parquet", *PARTS)
    with output_folder(folder / "out.parquet.parts"):
        assert main(line) == 2
    assert f"another run (process {os.getpid()}) writes to out.parquet; wait" in capsys.readouterr().err
    (folder / "link.parquet").symlink_to("nowhere")
    (folder / "file").write_text("")
    for out, message in (("link.parquet", "'link.parquet' exists"), ("file/out.parquet", "file is a file")):
        assert main(command("--out", out)) == 2
        assert message in capsys.readouterr().err
    (folder / "out.parquet.parts").rmdir()  # of this test
    assert not list(folder.glob("*.parts"))


@pytest.mark.parametrize("name", ["huge", "cut", "single"])
def test_an_archive_that_cannot_be_read_is_named(folder, name, capsys):
    np.savez("x.npz", x=np.ones((5, 4), np.float32))
    data = (folder / "x.npz").read_bytes()
    if name == "huge":
        with zipfile.ZipFile("huge.npz", "w") as archive:
            buffer = io.BytesIO()
            np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)})
            archive.writestr("x.npy", buffer.getvalue() + bytes(100))
    elif name == "cut":
        (folder / "cut.npz").write_bytes(data[:-30])
    else:
        np.save("single.npy", np.ones(3))
        (folder / "single.npy").rename("single.npz")
    for line in (
        ["predict", "my_predicted_nets:net", f"{name}.npz", "--out", "out.parquet"],
        ["compare", f"{name}.npz", "--target", "y"],
    ):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert f"{name}.npz: cannot be read (" in error
