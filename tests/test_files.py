import os

import pytest
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
