"""The check of source: files for each code, trees of several files, notebooks, syntax, and the command."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from puredrop.cli import main
from puredrop.linting.source import check_paths, check_text, fix_text

FILES = Path(__file__).parent / "source"
CODES = sorted({path.name[:5] for path in FILES.glob("*.py")})
HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
BAD = HEAD + "class A(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, 0.5)\n"


def codes(report):
    return [finding.code for finding in report]


@pytest.mark.parametrize("code", CODES)
def test_a_bad_and_a_fixed_file_for_each_code(code):
    bad, fixed = ((FILES / f"{code}_{kind}.py").read_text() for kind in ("bad", "fixed"))
    assert set(codes(check_text(bad))) == {code.upper()}
    assert check_text(fixed) == ()
    mended = fix_text(bad)
    assert mended == (fixed if code in ("pd101", "pd102") else bad)
    assert fix_text(mended) == mended
    compile(mended, "mended", "exec")


def test_places():
    assert [(one.line, one.column) for one in check_text((FILES / "pd101_bad.py").read_text())] == [
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
        x = F.dropout(x, p=0.0)
        x = F.dropout(x, *rest)
        x = F.dropout(x, **rest)
        x = dropout(x, 0.5)
        x = self.dropout(x)
        x = F.alpha_dropout(x, 0.5, self.training)
        x = F.dropout(x, 0.5)  # puredrop: ignore[PD101]
        x = F.dropout(x, 0.5)  # meant; puredrop: ignore
        x = F.dropout(x, 0.5)  # noqa: E501, PD101
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0)
        return F.scaled_dot_product_attention(x, x, x)
"""


def test_right_code_is_left_alone():
    assert check_text(FINE) == ()
    assert fix_text(FINE) == FINE
    other = FINE.replace("ignore[PD101]", "ignore[PD102]").replace("noqa: E501, PD101", "noqa: E501")
    assert codes(check_text(other)) == ["PD101", "PD101"]


def test_outside_of_a_module_nothing_is_mended():
    text = "import torch.nn.functional as F\ndef f(x):\n    return F.dropout(x)\n"
    assert codes(check_text(text)) == ["PD101"]
    assert fix_text(text) == text


def test_an_edit_keeps_bytes_and_layout():
    text = BAD.replace("x, 0.5", 'self.f("é", x), p=0.5').replace("F.dropout", "F . dropout").replace("\n", "\r\n")
    assert fix_text(text) == text.replace("p=0.5", "p=0.5, training=self.training")


def test_training_self_train_is_mended():
    assert "training=self.training)" in fix_text(BAD.replace("0.5", "0.5, training=self.train"))


@pytest.mark.parametrize("call", ["F.dropout(x, self.training)", "F.dropout(x, 0.5, True)", "F.dropout(x, *a)"])
def test_what_may_be_meant_otherwise_is_not_mended(call):
    text = BAD.replace("F.dropout(x, 0.5)", call)
    assert fix_text(text) == text


def test_no_false_alarm_on_torch_nn():
    report = check_paths([Path(torch.nn.__file__).parent / "modules", Path(torch.nn.__file__).parent / "functional.py"])
    assert report.files > 20
    assert report.ok, str(report)


# Trees of several files.


@pytest.fixture
def tree(tmp_path):
    def write(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        return tmp_path

    return write


WRAPPER = "import torch.nn.functional as F\ndef mask(x, p, training=True):\n    return F.dropout(x, p, training)\n"
CALLER = "from torch import nn\n{}\nclass A(nn.Module):\n    def forward(self, x):\n        return {}(x, 0.1{})\n"


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("from .layers import mask", "mask"),
        ("from . import layers as l", "l.mask"),
        ("from pkg.layers import *", "mask"),
    ],
)
def test_a_caller_in_another_file_that_hands_no_flag_on(tree, imports, name):
    files = {"pkg____init__": "", "pkg__layers": WRAPPER}
    right = tree(**files, pkg__net=CALLER.format(imports, name, ", self.training"))
    assert check_paths([right]).ok
    wrong = tree(pkg__net=CALLER.format(imports, name, ""))
    (finding,) = check_paths([wrong])
    assert (finding.code, Path(finding.file).name, finding.line) == ("PD101", "net.py", 5)
    assert "layers.py:3" in finding.detail


def test_a_rate_that_only_callers_know(tree):
    attend = "import torch.nn.functional as F\ndef attend(q, rate):\n    return F.scaled_dot_product_attention(q, q, q, dropout_p=rate)\n"
    assert codes(check_paths([tree(a=attend)])) == ["PD002"]
    caller = "from a import attend\nfrom torch import nn\nclass A(nn.Module):\n    def forward(self, q):\n        return attend(q, {})\n"
    assert check_paths([tree(a=attend, b=caller.format("0.1 if self.training else 0.0"))]).ok
    (finding,) = check_paths([tree(a=attend, b=caller.format("self.rate"))])
    assert (finding.code, Path(finding.file).name) == ("PD102", "b.py")


def test_a_base_class_of_another_file(tree):
    base = "from torch import nn\nclass Base(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.rate = 0.0\n"
    net = "import torch.nn.functional as F\nfrom base import Base\nclass A(Base):\n    def forward(self, q):\n        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate)\n"
    assert check_paths([tree(base=base, net=net)]).ok
    assert codes(check_paths([tree(base=base.replace("0.0", "0.1"), net=net)])) == ["PD102"]


def test_imports_in_a_circle(tree):
    tree(a="from b import *\nfrom b import dropout\n", b="from a import *\nfrom a import dropout\n")
    assert check_paths(
        [tree(c="from a import dropout, f\nclass A:\n    def forward(self, x):\n        return dropout(f(x))\n")]
    ).ok


def test_many_files_on_two_processes(tree):
    root = tree(
        **{f"m{i}": BAD for i in range(45)},
        wrapper=WRAPPER,
        caller=CALLER.format("from wrapper import mask", "mask", ""),
    )
    seen = []
    two = check_paths([root], lambda done, count: seen.append((done, count)), processes=2)
    assert two == check_paths([root])
    assert codes(two) == ["PD101"] * 46
    assert seen[-1] == (46, 46)


# Files that are not read, or not as they are.


@pytest.mark.parametrize(
    "text",
    [
        "class A[T: int](nn.Module):\n    def g[U](self, x: U) -> U:\n        return F.dropout(x)\n",
        "type X[T] = list[T]\ndef g(x):\n    return F.dropout(x)\n",
        "def g(x):\n    try:\n        pass\n    except A, B:\n        return F.dropout(x)\n",
        'def g(x, d):\n    print(f"{d[\'a\']} {d["b"]} {f"{d["c"]}"}")  # f"\n    return F.dropout(x)\n',
        'def g(x):\n    t = t"drop {x}"\n    return F.dropout(x)\n',
        "def g(x):\n    match x:\n        case [y]:\n            return F.dropout(x)\n",
        "async def g(x):\n    return F.dropout(await x)\n",
    ],
)
def test_newer_syntax_is_read(text):
    (finding,) = check_text(HEAD + text)
    assert finding.code == "PD101"
    assert finding.line == 3 + text[: text.index("F.dropout")].count("\n") + 1
    assert (HEAD + text).split("\n")[finding.line - 1][finding.column - 1 :].startswith("F.dropout")


def test_a_file_of_python_36_is_read_and_said(tree, capsys):
    root = tree(old=BAD + "def f(v):\n    return v.cuda(async=True)\n")
    assert codes(check_paths([root])) == ["PD101", "PD001"]
    assert main(["check", str(root)]) == 2
    assert "keywords since Python 3.7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.py", b"print 'dropout'\n"),
        ("a.py", b"dropout(\n"),
        ("a.py", b"dropout = '\xff'\n"),
        ("a.py", b"# coding: nowhere\ndropout\n"),
        ("a.py", b"dropout\x00\n"),
        ("a.py", b"dropout = " + b"(" * 5000 + b")" * 5000 + b"\n"),
        ("a.py", b"x = 'dropout'\n" + b"y = 1\n" * 600_000),
        ("a.ipynb", b"{dropout"),
        ("a.ipynb", b'{"dropout": []}'),
    ],
)
def test_a_file_that_cannot_be_read_is_one_finding_and_hides_nothing(name, data, tree, capsys):
    root = tree(b=BAD)
    (root / name).write_bytes(data)
    report = check_paths([root])
    assert codes(report) == ["PD001", "PD101"]
    assert len(report.findings[0].message.splitlines()) == 1
    assert main(["check", str(root)]) == 2
    assert "PD101" in capsys.readouterr().out


def test_links_and_folders_that_are_left_out(tree, capsys):
    root = tree(a=BAD, venv__lib__b=BAD, __hidden__c="", **{".hidden__d": BAD}, site_packages__e="")
    (root / "venv/pyvenv.cfg").write_text("")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    report = check_paths([root])
    assert [(one.code, Path(one.file).name) for one in report] == [("PD101", "a.py"), ("PD001", "dangling.py")]


def notebook(*cells):
    kinds = [{"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": {}} for kind, source in cells]
    return json.dumps({"cells": kinds, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_a_notebook_by_cell_and_line(tmp_path, capsys):
    path = tmp_path / "a.ipynb"
    cells = [
        ("markdown", "# F.dropout(x)"),
        ("code", "%matplotlib inline\n!pip install x\nfiles = !ls\nF?\n" + HEAD),
        ("code", "%%bash\nF.dropout("),
        ("code", "print 'broken'"),
        (
            "code",
            "class A(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, 0.5)\nF.dropout(torch.ones(3))",
        ),
    ]
    path.write_text(notebook(*cells))
    report = check_paths([tmp_path])
    assert [(one.code, one.cell, one.line, one.column) for one in report] == [("PD001", 4, 1, 1), ("PD101", 5, 3, 16)]
    assert main(["check", str(path)]) == 2
    assert f"{path}:cell 5:3:16: error PD101" in capsys.readouterr().out
    assert main(["check", str(path), "--format", "github"]) == 2


def test_what_python_thinks_of_a_literal_is_not_printed():
    text = "import torch.nn.functional as F\n\n\ndef forward(x):\n    return F.dropout(x, 1if x else 0)\n"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert codes(check_text(text)) == ["PD101"]
    assert not said


# The command.


@pytest.fixture
def folder(tmp_path):
    for name in ("pd101", "pd102", "pd105"):
        (tmp_path / f"{name}_bad.py").write_text((FILES / f"{name}_bad.py").read_text())
    return tmp_path


def test_the_command_prints_finds_and_mends(folder, capsys):
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(f"{folder}/pd101_bad.py:9:13: error PD101: functional dropout is always on: ")
    assert out.splitlines()[1] == "    x = F.dropout(x, 0.5)"
    assert out.splitlines()[-1] == "5 findings (5 calls that drop, in 3 files)"
    assert main(["check", str(folder), "--fix"]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "error" in line] == [
        f"{folder}/pd105_bad.py:6:16: error PD105: dropout is created in forward: p=0.5"
    ]
    assert (folder / "pd101_bad.py").read_text() == (FILES / "pd101_fixed.py").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["pd101_bad.py", "pd102_bad.py", "pd105_bad.py"]
    (folder / "pd105_bad.py").unlink()
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out == "no findings (4 calls that drop, in 2 files)\n"


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
        (["empty"], "empty: nothing to check: the folder holds no .py or .ipynb file"),
        ([".", "--input", "2,3"], "--input is for a model; files are not run"),
        (["m:f", "."], "m:f is a model; expected it alone, or files and folders only"),
        (["m:f", "--fix"], "--fix is for files; a model is not changed"),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.py").write_text(BAD)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"puredrop check: error: {message}")
    assert len(error.splitlines()) == 1


def test_the_verdict_does_not_depend_on_how_the_path_is_spelled(tree, monkeypatch):
    root = tree(ops=WRAPPER, net=CALLER.format("from ops import mask as m", "m", ""))
    monkeypatch.chdir(root)
    for path in (".", "./", str(root), f"../{root.name}"):
        assert codes(check_paths([Path(path)])) == ["PD101"], path
    assert codes(check_paths([Path("net.py"), Path("ops.py")])) == ["PD101"]


def test_a_link_stays_one_when_its_file_is_mended(tree):
    root = tree(real=BAD)
    (root / "link.py").symlink_to("real.py")
    assert main(["check", str(root / "link.py"), "--fix"]) == 0
    assert (root / "link.py").is_symlink()
    assert "training=self.training" in (root / "real.py").read_text()
