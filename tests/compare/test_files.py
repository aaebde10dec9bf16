import os

import pytest
import torch

from puredrop.compare import files

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
