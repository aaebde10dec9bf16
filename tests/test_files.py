import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from puredrop import _files as files

TENSORS = {"a": torch.randn(3, 4), "b": torch.arange(5)}
STATE = {"epoch": 3, "nll": [0.1 + 0.2, 1e-300], "name": "x"}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    files.save_checkpoint(path, TENSORS, STATE)
    return path


def test_a_checkpoint_comes_back_bit_for_bit(checkpoint):
    tensors, state = files.load_checkpoint(checkpoint)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert state == STATE


@pytest.mark.parametrize("position", [9, 60, 200, -1, -30])
def test_a_changed_byte_anywhere_is_refused_and_the_file_named(checkpoint, position):
    data = bytearray(checkpoint.read_bytes())
    data[position] ^= 1
    checkpoint.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is corrupt \(.*\); delete it to start again"):
        files.load_checkpoint(checkpoint)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:40], lambda d: b"", lambda d: d + b"x"])
def test_a_cut_or_grown_file_is_refused(checkpoint, change):
    checkpoint.write_bytes(change(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match=r"is corrupt"):
        files.load_checkpoint(checkpoint)


def test_a_foreign_safetensors_file_is_refused(checkpoint):
    import safetensors.torch

    checkpoint.write_bytes(safetensors.torch.save(TENSORS))
    with pytest.raises(ValueError, match=r"is corrupt \('digest'\)"):
        files.load_checkpoint(checkpoint)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, b"old")

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    files.write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_planted_link_is_not_followed_and_permissions_stay(tmp_path, monkeypatch):
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_bytes(b"precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".file.guessed.tmp").symlink_to(target)
    with pytest.raises(FileExistsError):
        files.write(path, b"new")
    assert target.read_bytes() == b"precious"
    monkeypatch.undo()
    path.symlink_to(target)
    files.write(path, b"new")
    assert (path.is_symlink(), path.read_bytes(), target.read_bytes()) == (False, b"new", b"precious")
    path.chmod(0o640)
    files.write(path, b"newer")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_checkpoint_of_another_format_is_refused_by_name(checkpoint, monkeypatch):
    monkeypatch.setattr(files, "CHECKPOINT_FORMAT", 2)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors has format 1, expected format 2: .*delete the file"):
        files.load_checkpoint(checkpoint)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.write(path, b"data")
    assert os.read(reader, 10) == b"data"
    assert path.is_fifo()
    os.close(reader)


WRITERS = {
    "a.json": lambda path: files.write_json(path, {"format": 1, "nll": [0.1 + 0.2, -0.0], "name": "é"}),
    "a.html": lambda path: files.write_page(path, "<!doctype html>\n<html><body>page</body></html>\n"),
    "b.html": lambda path: files.write_page(path, "<html><body>figure</body></html>\n"),
    "a.safetensors": lambda path: files.write_tensors(path, TENSORS),
    "checkpoint.safetensors": lambda path: files.save_checkpoint(path, TENSORS, STATE),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_flipped_bit_of_every_kind_of_file_is_noticed(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    assert files.read(path, "") == data
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert files.checksum_state(io.BytesIO(flipped)) == "corrupt", bit
    for end in (1, len(data) // 4):
        assert files.checksum_state(io.BytesIO(data[:-end])) == "corrupt"
    path.write_bytes(data + b" ")
    with pytest.raises(ValueError, match=rf"{name} is corrupt \(its checksum is wrong\); fetch it again"):
        files.read(path, "fetch it again")


def test_what_is_written_comes_back(tmp_path):
    for name, writer in WRITERS.items():
        writer(tmp_path / name)
    assert files.read_json(tmp_path / "a.json", "") == {"format": 1, "nll": [0.1 + 0.2, -0.0], "name": "é"}
    tensors = files.read_tensors(tmp_path / "a.safetensors", "")
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>\n<!-- puredrop blake2b-128 ")
    assert (tmp_path / "b.html").read_text().endswith("-->\n<html><body>figure</body></html>\n")


@pytest.mark.parametrize("place", [0, 1, 70, (1 << 20) - 100, (1 << 20) - 50, (1 << 20) - 1, 1 << 20, 3 << 20])
def test_a_checksum_is_found_wherever_it_stands(place):
    mark = files.BLANK_CHECKSUM.encode()
    data = os.urandom(place) + mark + os.urandom((1 << 20) + 17)
    sealed, file = files.seal(data), io.BytesIO(data)
    files.seal_file(file)
    assert file.getvalue() == sealed
    assert files.checksum_state(file) == "right"
    for position in (0, place + 25, len(data) - 1):
        changed = bytearray(sealed)
        changed[position] ^= 4
        assert files.checksum_state(io.BytesIO(changed)) == "corrupt"
    assert files.checksum_state(io.BytesIO(os.urandom(3000))) == "no checksum"


def test_a_checkpoint_from_before_checksums_is_checked_by_its_digest(tmp_path):
    text = json.dumps(STATE)
    metadata = {"format": "1", "state": text, "digest": files.digest(TENSORS, text)}
    path = tmp_path / "old.safetensors"
    path.write_bytes(safetensors.torch.save(TENSORS, metadata))
    assert files.load_checkpoint(path)[1] == STATE
    path.write_bytes(safetensors.torch.save({**TENSORS, "b": TENSORS["b"] + 1}, metadata))
    with pytest.raises(ValueError, match=r"old.safetensors is corrupt \(its checksum is wrong\)"):
        files.load_checkpoint(path)


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    files.write(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"^cannot write .*file: No space left on device$") as info:
            files.write(path, b"new")
    assert info.value.errno == errno.ENOSPC
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", b"old")]
    shutil.rmtree(path.parent)
    with pytest.raises(FileNotFoundError, match=r"^cannot write .*: the folder .*folder has vanished$"):
        files.write(path, b"new")
    with pytest.raises(OSError, match=r"^cannot write /dev/full: No space left on device$"):
        files.write(Path("/dev/full"), b"new")


def test_only_what_was_being_written_here_is_removed(tmp_path):
    names = [".file.0123456789abcdef.tmp", ".file.tmp", ".other.0123456789abcdef.tmp", ".file.0123456789ABCDEF.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    files.remove_interrupted(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
