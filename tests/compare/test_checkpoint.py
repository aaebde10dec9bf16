"""A checkpoint whose checksum fits and whose state is another: somebody wrote it, or another version did."""

import pytest

from puredrop import _files
from puredrop.cli import main
from puredrop.compare import page

LINE = ["compare", "digits", "--rows", "60", "--hidden", "4", "--rates", "0.5", "--seeds", "2", "--epochs", "1"]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, unexplained):
    def interrupted(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(page, "render", interrupted)
        assert main([*LINE, "--out", str(tmp_path / "run")]) == 130
    return tmp_path / "run" / "checkpoint.safetensors"


@pytest.mark.parametrize(
    "change",
    [{"identity": 3}, {"threads": None}, {"threads": -1}, {"arms": None}, {"arms": {"none": {}}}, {"arms": ...}],
)
def test_it_is_named_and_refused(checkpoint, capsys, change):
    tensors, state = _files.load_checkpoint(checkpoint)
    state = {name: value for name, value in {**state, **change}.items() if value is not ...}
    _files.save_checkpoint(checkpoint, tensors, state)
    capsys.readouterr()
    assert main([*LINE, "--out", str(checkpoint.parent), "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint.safetensors is corrupt (" in line
    assert line.endswith("; delete it to start again")
