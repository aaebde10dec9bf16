"""Source files: a bad and a fixed one for each code, and no false alarm."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from puredrop.cli import main
from puredrop.linting.source import check_paths, check_source, fixed_source

FILES = Path(__file__).parent / "source"
CODES = sorted({path.name[:5] for path in FILES.glob("*.py")})


@pytest.mark.parametrize("code", CODES)
def test_a_bad_and_a_fixed_file_for_each_code(code):
    bad, fixed = ((FILES / f"{code}_{kind}.py").read_text() for kind in ("bad", "fixed"))
    found = check_source(bad)
    assert {one.code for one in found} == {code.upper()}
    assert check_source(fixed) == ()
    mended = fixed_source(bad)
    assert mended == (bad if code == "pd105" else fixed)
    assert fixed_source(mended) == mended
    compile(mended, "mended", "exec")


def test_places():
    assert [(one.line, one.column) for one in check_source((FILES / "pd101_bad.py").read_text())] == [
        (9, 13),
        (10, 13),
        (14, 16),
    ]


FINE = """
import torch.nn.functional as F
from torch import nn
from mine import dropout
class Net(nn.Module):
    def forward(self, x, **rest):
        x = F.dropout(x, 0.5, self.training)
        x = F.dropout(x, training=False)
        x = F.dropout(x, p=0.0)
        x = F.dropout(x, *rest)
        x = F.dropout(x, **rest)
        x = dropout(x, 0.5)
        x = self.dropout(x)
        x = F.alpha_dropout(x, 0.5)
        x = F.dropout(x, 0.5)  # puredrop: ignore[PD101]
        x = F.dropout(x, 0.5)  # meant; puredrop: ignore
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0)
        return F.scaled_dot_product_attention(x, x, x)
"""


def test_what_is_fine_is_left_alone():
    assert check_source(FINE) == ()
    assert fixed_source(FINE) == FINE
    other = FINE.replace("ignore[PD101]", "ignore[PD102]")
    assert [one.code for one in check_source(other)] == ["PD101"]


def test_outside_of_a_module_nothing_is_mended():
    text = "import torch.nn.functional as F\ndef f(x):\n    return F.dropout(x)\n"
    assert [one.code for one in check_source(text)] == ["PD101"]
    assert fixed_source(text) == text


def test_no_false_alarm_on_torch_nn():
    report = check_paths([Path(torch.nn.__file__).parent / "modules", Path(torch.nn.__file__).parent / "functional.py"])
    assert report.checked > 20
    assert report.ok, str(report)


@pytest.fixture
def folder(tmp_path):
    for path in FILES.glob("*_bad.py"):
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def test_the_command_prints_finds_and_mends(folder, capsys):
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{folder}/pd101_bad.py:9:13: error PD101: functional dropout is always on"
    assert out.splitlines()[-1] == "5 findings"
    assert main(["check", str(folder), "--fix"]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "error" in line] == [
        f"{folder}/pd105_bad.py:6:16: error PD105: dropout is created in forward"
    ]
    assert (folder / "pd101_bad.py").read_text() == (FILES / "pd101_fixed.py").read_text()
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in FILES.glob("*_bad.py"))
    (folder / "pd105_bad.py").unlink()
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out == "no findings (2 checked)\n"


def test_formats_for_machines(folder, capsys):
    path = str(folder / "pd102_bad.py")
    assert main(["check", path, "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["findings"][0]["code"], found["findings"][0]["line"]) == (False, "PD102", 7)
    main(["check", path, "--format", "sarif"])
    run = json.loads(capsys.readouterr().out)["runs"][0]
    result = run["results"][0]
    assert result["ruleId"] in {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 7, "startColumn": 16}
    main(["check", path, "--format", "github"])
    assert capsys.readouterr().out.startswith(f"::error file={path},line=7,col=16,title=puredrop PD102::attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: no such file or folder (a model is named module:factory)"),
        (["broken.py"], "broken.py: cannot be read as Python (Syntax Error @ 1:1."),
        ([".", "--input", "2,3"], "--input is for a model; files are not run"),
        (["m:f", "."], "m:f is a model; expected it alone, or files and folders only"),
        (["m:f", "--fix"], "--fix is for files; a model is not changed"),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text("dropout(")
    monkeypatch.chdir(tmp_path)
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"puredrop check: error: {message}")
    assert len(error.splitlines()) == 1


def test_what_python_thinks_of_a_literal_is_not_printed():
    text = "import torch.nn.functional as F\n\n\ndef forward(x):\n    return F.dropout(x, 1if x else 0)\n"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [finding.code for finding in check_source(text)] == ["PD101"]
    assert not said


def test_without_libcst_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libcst", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["check", "."]) == 2
    assert "pip install 'puredrop[check]'" in capsys.readouterr().err
