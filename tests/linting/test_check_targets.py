"""What the command cannot check is said, and hides nothing else; progress."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_tree import BAD, models, run, source, src

import puredrop
from puredrop.cli import check_progress
from puredrop.cli.check_progress import CheckProgress
from puredrop.linting.source import checking, fixing
from puredrop.testing import assert_dropout_ok

__all__ = ["models", "run", "src"]


# Nothing to check.


def test_a_folder_with_nothing_that_drops_is_an_error_and_files_are_none(src, run):
    (src / "bad.py").write_text("x = 1\n")
    (src / "good.py").write_text("y = 1\n")
    for targets in (["src"], ["src", "src/good.py"]):
        code, out, error = run(*targets)
        assert (code, out) == (2, "")
        assert error == "puredrop check: error: nothing to check: no call that drops in 2 files\n"
    assert run("src/bad.py", "src/good.py") == (0, "nothing that drops in 2 files\n", "")
    assert run("src/bad.py") == (0, "nothing that drops in 1 file\n", "")
    (src / "bad.py").write_text(source(BAD))
    assert run("src", "--ignore", "PD101")[0] == 0  # left out is not nothing


def test_a_model_without_dropout_is_an_error(models, run):
    code, out, error = run(f"{models}:without", "--input", "2,4")
    assert (code, out) == (2, "")
    assert error == "puredrop check: error: nothing to check: the model has no dropout\n"
    assert run(f"{models}:good", "--input", "2,4")[0] == 0
    net = torch.nn.Linear(3, 2)
    report = puredrop.check(net, torch.randn(2, 3))
    assert not report.ok
    assert str(report) == "nothing to check: the model has no dropout"
    with pytest.raises(AssertionError, match=r"^nothing to check: the model has no dropout$"):
        assert_dropout_ok(net, torch.randn(2, 3))


# What cannot be checked hides nothing else.


def test_each_path_that_cannot_be_checked_is_one_line(src, run):
    os.mkfifo("pipe.py")
    os.mkfifo(src / "inner.py")
    Path("loop.py").symlink_to("loop.py")
    (src / "dangling.py").symlink_to("nowhere")
    code, out, error = run("gone.py", "pipe.py", "/dev/null", "loop.py", "", "src/bad.py/x.py", "src")
    assert code == 2
    assert "src/bad.py:7:13: error PD101" in out
    assert "src/dangling.py:0:1: error PD001: the file cannot be read: No such file" in out
    assert error.splitlines() == [
        f"puredrop check: error: {line}"
        for line in (
            "gone.py: no such file or folder (a model is named module:factory)",
            "pipe.py: neither a file nor a folder, and not read",
            "/dev/null: neither a file nor a folder, and not read",
            "loop.py: Too many levels of symbolic links",
            ": no such file or folder (a model is named module:factory)",
            "src/bad.py/x.py: no such file or folder (a model is named module:factory)",
            "src/inner.py: neither a file nor a folder, and not read",
        )
    ]


def test_a_folder_without_permission_is_one_line(src, run, monkeypatch):
    (src / "secret").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, error = run("src")
    assert (code, "PD101" in out) == (2, True)
    assert error == "puredrop check: error: src/secret: Permission denied\n"
    assert run("src/secret")[2] == "puredrop check: error: src/secret: Permission denied\n"


def test_a_file_that_vanishes_is_a_finding(src, run, monkeypatch):
    read = checking.could_drop

    def vanish(file):
        answer = read(file)
        if file.endswith("good.py"):
            Path(file).unlink()
        return answer

    monkeypatch.setattr(checking, "could_drop", vanish)
    code, out, _ = run("src")
    assert code == 2
    assert "src/bad.py:7:13: error PD101" in out
    assert "src/good.py:0:1: error PD001: the file cannot be read: No such file or directory" in out


def test_a_file_that_cannot_be_mended_is_one_line(src, run, monkeypatch):
    (src / "second.py").write_text(source(BAD))

    def write(path, data):
        if path.name == "bad.py":
            raise PermissionError(f"cannot write {path}: Permission denied")
        path.write_bytes(data)

    monkeypatch.setattr(fixing, "write", write)
    code, out, error = run("src", "--fix")
    assert code == 2
    assert error == "puredrop check: error: cannot write src/bad.py: Permission denied\n"
    assert out.count("error PD101") == 1


@pytest.mark.parametrize("output", ["a closed pipe", "none"])
def test_closed_output_is_no_traceback(output, src):
    command = [sys.executable, "-m", "puredrop", "check", "src"]
    if output == "none":
        found = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False)
        assert (found.returncode, found.stderr) == (1, b"")
        return
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, b"")


# Progress.


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_said_after_two_seconds(is_terminal, monkeypatch):
    error, now = Terminal() if is_terminal else io.StringIO(), [100.0]
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(check_progress.time, "monotonic", lambda: now[0])
    with CheckProgress() as progress:
        for i in range(1, 1401):
            now[0] += 0.01
            progress(i, 1400)
    said = error.getvalue()
    if is_terminal:
        assert said.startswith("\rchecked 200 of 1,400 files that may drop\r")
        assert said.count("\rchecked") > 50
        assert "\n" not in said
        assert said.rstrip(" \r").endswith("files that may drop")
        assert said.endswith(" \r")
    else:
        assert said.splitlines() == [f"checked {n} of 1,400 files that may drop" for n in ("200", "700", "1,200")]


def test_progress_goes_to_stderr_alone_and_may_fail(src, run, monkeypatch):
    monkeypatch.setattr(check_progress, "_PATIENCE", 0.0)
    code, out, error = run("src", "--format", "json")
    assert (code, len(json.loads(out)["findings"])) == (1, 1)
    assert error == "checked 1 of 2 files that may drop\n"
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert run("src")[0] == 1
