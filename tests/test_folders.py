"""One run at a time writes to a folder, and a start that fails leaves nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from puredrop import _folders
from puredrop._folders import check_output_folder, check_unlocked, output_folder

HOLD = """
import sys, time
from pathlib import Path
from puredrop._folders import output_folder
with output_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "out"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_run_is_named_and_a_crash_frees_the_folder(tmp_path, holder):
    folder = tmp_path / "out"
    message = rf"another run \(process {holder.pid}\) writes to .*out; wait until it ends, or choose another --out"
    for attempt in (lambda: output_folder(folder).__enter__(), lambda: check_unlocked(folder)):
        with pytest.raises(BlockingIOError, match=message):
            attempt()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / ".lock").exists()
    check_unlocked(folder)
    with output_folder(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
    assert list(folder.iterdir()) == []


def test_a_block_that_raises_removes_what_it_made_and_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="bad data"), output_folder(tmp_path / "a" / "b"):
        raise ValueError("bad data")
    assert list(tmp_path.iterdir()) == []
    with output_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").write_text("part")
    with pytest.raises(ValueError, match="later"), output_folder(tmp_path / "a" / "b"):
        raise ValueError("later")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="again"), output_folder(tmp_path / "empty"):
        raise ValueError("again")
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_planted_lock_is_not_written_to(tmp_path, link):
    precious = tmp_path / "precious"
    precious.write_bytes(b"of the user")
    folder = tmp_path / "out"
    folder.mkdir()
    getattr(folder / ".lock", link)(precious)
    if link == "symlink_to":
        with pytest.raises(OSError, match=r"\.lock"), output_folder(folder):
            pass
    else:
        with output_folder(folder):
            assert precious.read_bytes() == b"of the user"
    assert precious.read_bytes() == b"of the user"


def test_a_vanished_folder_is_no_second_error(tmp_path):
    folder = tmp_path / "out"
    with output_folder(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
    with output_folder(folder):  # its lock is deleted, and another run's is made
        (folder / ".lock").unlink()
        (folder / ".lock").write_text("of another run")
    assert (folder / ".lock").read_text() == "of another run"


def test_threads_that_begin_together_never_hold_it_together(tmp_path, monkeypatch):
    monkeypatch.setattr(_folders, "_PAUSE", 0.0)
    inside, most, done = [0], [0], [0]
    guard = threading.Lock()

    def run():
        for _ in range(60):
            try:
                with output_folder(tmp_path / "out"):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        done[0] += 1
                    with guard:
                        inside[0] -= 1
            except BlockingIOError:
                continue

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert done[0] >= 60


def test_folders_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, message in (
        (tmp_path / "file", r"--out is '.*file', which is a file; expected a folder or a new name"),
        (tmp_path / "file" / "sub", r"--out is '.*sub', but .*file is a file"),
        (tmp_path / "link", r"--out is '.*link', but .*link links to .*nowhere, which does not exist"),
        (tmp_path / "link" / "sub", r"link links to .*nowhere, which does not exist"),
    ):
        with pytest.raises(OSError, match=message):
            check_output_folder(path)
    check_output_folder(tmp_path / "new" / "sub")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="is not writable"):
        check_output_folder(tmp_path / "new")


def test_a_full_disk_locks_too_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    locked = pytest.raises(BlockingIOError, match=r"another run writes to .*out; wait")
    with output_folder(tmp_path / "out"), locked:
        check_unlocked(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
