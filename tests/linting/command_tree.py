"""A folder of sources and a file of models that the command checks, for the tests of the command."""

import re

import pytest

from puredrop.cli import main

HEAD = "import torch.nn.functional as F\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
BAD, GOOD = "        x = F.dropout(x, 0.5)\n", "        x = F.dropout(x, 0.5, self.training)\n"
UNKNOWN = "        x = F.dropout(x, 0.5, options[x])\n"
END = "        return x\n"
MODELS = """from torch import nn
def bad(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.95), nn.Linear(4, 3))
def worse(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.95), nn.Linear(4, 4), nn.Dropout(1.0), nn.Linear(4, 3))
def good(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))
def without(): return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
"""


def source(*lines):
    return HEAD + "".join(lines) + END


@pytest.fixture
def src(tmp_path, monkeypatch):
    """A folder in the current one, with a bad file and a good one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "bad.py").write_text(source(BAD))
    (folder / "good.py").write_text(source(GOOD))
    return folder


@pytest.fixture
def models(src, tmp_path, request):
    name = re.sub(r"\W", "_", f"models_of_{request.node.name}")
    (tmp_path / f"{name}.py").write_text(MODELS)
    return name


@pytest.fixture
def run(capsys):
    """Function that runs the command and returns the exit code, and what stands on stdout and stderr."""

    def run(*arguments):
        code = main(["check", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
