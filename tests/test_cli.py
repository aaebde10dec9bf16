import re
import subprocess
import sys
from importlib import metadata

import pytest

from puredrop.cli import _STUDY, main


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


def test_python_m_puredrop_is_the_command():
    found = subprocess.run([sys.executable, "-m", "puredrop", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("puredrop 0.")


@pytest.mark.parametrize("package", _STUDY)
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
    assert study == {"scikit-learn" if name == "sklearn" else name for name in _STUDY}
