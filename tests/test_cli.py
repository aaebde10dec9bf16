import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

from puredrop.cli import main
from puredrop.cli.errors import STUDY


def test_help_names_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as info:
        main(["compare", "--help"])
    assert info.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--data-dir",
        "--hidden",
        "--rates",
        "--input-rate",
        "--epochs",
        "--seeds",
        "--rows",
        "--out",
        "--resume",
    ):
        assert option in text


def test_no_command_is_an_error_of_one_line(capsys):
    with pytest.raises(SystemExit) as info:
        main([])
    assert info.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\x0cb", "a\nb", "a\r\x1b[31mb", "a\u2028b", "a\udcffb"])
def test_an_error_is_one_line_whatever_is_in_a_name(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "run", "--out", name])
    assert ended.value.code == 2
    assert main(["verify", name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() and "a\\" in line and "error: " in line for line in lines)


def test_python_m_puredrop_is_the_command():
    found = subprocess.run([sys.executable, "-m", "puredrop", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("puredrop 0.")


@pytest.mark.parametrize("package", STUDY)
def test_without_the_study_extra_it_says_what_to_install(package, tmp_path):
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == sys.argv[1] else find(name)\n"
        "from puredrop.cli import main\n"
        "sys.exit(main(['compare']))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, package], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.returncode == 2
    expected = f"compare needs {package}; install what it needs with: pip install 'puredrop[study]'"
    assert found.stderr == f"puredrop compare: error: {expected}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_study_extra_installs_all_that_compare_imports():
    needed = metadata.requires("puredrop")
    study = {re.split(r"[^a-z0-9-]", need)[0] for need in needed if 'extra == "study"' in need.replace("'", '"')}
    assert study == {"scikit-learn" if name == "sklearn" else name for name in STUDY}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a module of models, where the command runs."""
    (tmp_path / "some_models.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def plain(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))\n"
        "def given(): return plain(), torch.ones(2, 4)\n"
        "def tuples(): return plain(), (torch.ones(2, 4),)\n"
        "def named(): return plain(), {'input': torch.ones(2, 4)}\n"
        "def number(): return 3\n"
        "def broken(): raise OSError('no\\nweights')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("some_models", None)


@pytest.mark.parametrize("arguments", [["plain", "--input", "2,4"], ["given"], ["tuples"], ["named"]], ids=" ".join)
def test_sites_prints_a_table(arguments, models, capsys):
    name, *rest = arguments
    assert main(["sites", f"some_models:{name}", *rest]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1     dropout  0.3  2x4")
    assert main(["sites", f"some_models:{name}", *rest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == "1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("some_models", "MODEL is 'some_models'; expected module:factory, such as mymodels:small"),
        ("some_models:nothing", "MODEL some_models:nothing: some_models has no function or class 'nothing'"),
        ("no_such:f", "MODEL no_such:f: cannot import no_such (ModuleNotFoundError: No module named 'no_such')"),
        ("some_models:plain", "MODEL some_models:plain: no inputs to run it on; give --input 1,3,224,224, or return"),
        ("some_models:number", "MODEL some_models:number: the factory gave int; expected a torch.nn.Module"),
        ("some_models:broken", "OSError: no weights"),
    ],
)
def test_what_sites_cannot_run_is_one_line(spec, message, models, capsys):
    assert main(["sites", spec]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"puredrop sites: error: {message}")
    assert len(error.splitlines()) == 1
