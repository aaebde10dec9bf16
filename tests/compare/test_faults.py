"""A run on a full disk, under a file-size limit, in a folder that vanishes or that another run has: one line, and it resumes."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import quick

from puredrop import _files
from puredrop._folders import output_folder
from puredrop.cli import main
from puredrop.compare import run

SMALL = ["--rows", "60", "--hidden", "4", "--rates", "0.5", "--seeds", "2", "--epochs", "2"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(run, "analyse", quick.unexplained)
    monkeypatch.setattr(run, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def compare(out, *options):
    return main(["compare", "digits", "--out", str(out), *SMALL, *options])


def numbers(out):
    results = json.loads((out / "results.json").read_text())
    del results["created"], results["checksum"]
    for arm in results["arms"].values():
        arm.pop("seconds_per_epoch")
    return results, [(out / f"weights-{name}.safetensors").read_bytes() for name in ("none", "dropout")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The numbers of a run without a fault, and the number of its writes."""
    out, writes = tmp_path_factory.mktemp("whole") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "analyse", quick.unexplained)
        patch.setattr(run, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        patch.setattr(_files, "write", lambda path, data, write=_files.write: (writes.append(path), write(path, data)))
        assert compare(out) == 0
    return numbers(out), len(writes)


def test_a_disk_that_is_full_at_a_write_is_one_line_and_the_run_resumes(tmp_path, whole, capsys, monkeypatch):
    wanted, count = whole
    assert count > 8
    write = _files.write
    for at in random.Random(0).sample(range(count), 3):
        writes = iter(range(count))

        def full(path, data, at=at, writes=writes):
            if next(writes) == at:
                with _files.replacing(path) as file:
                    file.write(data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data)

        out = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(_files, "write", full)
            assert compare(out) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        assert "No space left on device" in error
        assert out.exists() == (at > 0)
        assert ("--resume" in error) == (at > 0)
        assert compare(out, "--resume") == 0
        assert numbers(out) == wanted
        assert sorted(path.name for path in out.iterdir()) == [
            "report.html", "results.json", "weights-dropout.safetensors", "weights-none.safetensors",
        ]  # fmt: skip


def test_a_file_size_limit_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, quick.__file__, "compare", "digits", "--out", tmp_path / "run", *SMALL],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("puredrop compare: error: cannot write ")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_vanishes_is_one_line(tmp_path, capsys, monkeypatch):
    out, save = tmp_path / "run", run.save_checkpoint

    def vanish(path, tensors, state):
        shutil.rmtree(out)
        save(path, tensors, state)

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_checkpoint", vanish)
        assert compare(out) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"the folder {out} has vanished" in error
    assert compare(out) == 0


def test_a_link_to_nowhere_and_another_run_are_refused_before_training(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert compare(tmp_path / "link") == 2
    assert "links to" in capsys.readouterr().err
    with output_folder(tmp_path / "run"):
        assert compare(tmp_path / "run") == 2
        assert f"another run (process {os.getpid()}) writes to" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []


def test_two_runs_started_together_give_one_result_and_one_line(tmp_path):
    line = [sys.executable, quick.__file__, "compare", "digits", "--out", tmp_path / "run", *SMALL]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(line, **pipes) for _ in range(2)]
    errors = [process.communicate()[1] for process in runs]
    assert 0 in [process.returncode for process in runs]
    for process, error in zip(runs, errors, strict=True):
        assert process.returncode in (0, 2)
        assert "Traceback" not in error
        # One that began when the first had ended makes the same run again.
        assert process.returncode == 0 or "another run" in error or "holds an unfinished run" in error
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_flipped_bits_of_what_a_run_leaves_are_refused(tmp_path, whole, capsys):
    out, chance = tmp_path / "run", np.random.default_rng(0)
    assert compare(out) == 0
    for name in ("results.json", "weights-dropout.safetensors", "weights-none.safetensors", "report.html"):
        data = (out / name).read_bytes()
        for bit in chance.integers(8 * len(data), size=3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            (out / name).write_bytes(flipped)
            capsys.readouterr()
            assert main(["verify", str(out)]) == 1
            said = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
            assert [line[0] for line in said if line[-1] == "corrupt"] == [str(out / name)]
            if name != "report.html":
                assert main(["explain", str(out)]) == 2
                assert f"{name} is corrupt (its checksum is wrong); " in capsys.readouterr().err
        (out / name).write_bytes(data)


def test_a_header_of_many_columns_is_read_in_linear_time(tmp_path, monkeypatch):
    """A column is compared with the others by its hash: a name knows how often it was compared."""
    from puredrop.compare import tables

    compared = [0]

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared[0] += 1
            return str.__eq__(self, other)

    (tmp_path / "wide.csv").write_text(",".join(f"c{i}" for i in range(3000)) + "\n" + ",".join("1" * 3000) + "\n")
    monkeypatch.setattr(tables.csv, "reader", lambda file: iter([[Name(f"c{i}") for i in range(3000)]]))
    assert tables._read(tmp_path / "wide.csv").shape == (1, 3000)
    assert compared[0] < 30_000
