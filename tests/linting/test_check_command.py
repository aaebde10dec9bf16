"""The command `puredrop check` in a team's daily work: its text, codes left out, and baselines."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from command_tree import BAD, GOOD, UNKNOWN, models, run, source, src

from puredrop.cli import main

__all__ = ["models", "run", "src"]


# The text.


def test_reason_and_fix_are_printed_once_for_each_code(src, run):
    (src / "bad.py").write_text(source(BAD * 50, UNKNOWN))
    code, out, _ = run("src")
    assert code == 1
    assert out.count(": error PD101: ") == 50
    assert out.count("why: ") == out.count("fix: ") == 2
    assert out.splitlines()[-1] == "50 findings, 1 not decided (52 calls that drop, in 2 files)"
    assert max(len(line) for line in out.splitlines() if line.startswith(" ")) <= 80


def test_a_long_line_is_cut_and_a_name_with_a_line_break_is_escaped(src, run):
    (src / "a\nb.py").write_text(source(f"        x = F.dropout(x, 0.5)  # {'long ' * 500}\n"))
    _, out, _ = run("src")
    first, second = out.splitlines()[:2]
    assert first.startswith(r"src/a\nb.py:7:13: error PD101")
    assert (len(second), second[-3:]) == (80, "...")


def test_what_the_terminal_cannot_show_is_escaped(src, monkeypatch):
    (src / "bad.py").write_text(source("        x = F.dropout(x, 0.5, True)  # ∂\n"))
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["check", "src"]) == 1
    assert rb"# \u2202" in out.buffer.getvalue()


# Codes that are left out, and comments.


def test_codes_are_left_out(src, run):
    (src / "bad.py").write_text(source(BAD, UNKNOWN))
    assert run("src", "--ignore", "pd101")[1].count("PD101") == 0
    code, out, error = run("src", "--ignore", "PD101, PD002")
    assert (code, out, error) == (0, "no findings (3 calls that drop, in 2 files)\n", "")


@pytest.mark.parametrize(
    ("typo", "nearest"), [("PD2022", "PD202"), ("PD01", "PD001"), ("E501", "PD501"), ("?", "PD001")]
)
def test_a_typo_in_a_code_is_an_error_with_the_nearest(typo, nearest, src, run):
    code, out, error = run("src", "--ignore", f"PD101,{typo}")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"puredrop check: error: --ignore has {re.escape(typo)}, which is no code; the nearest is (PD\d+): .*\n", error
    )
    assert f"is {nearest}: " in error


@pytest.mark.parametrize(
    "comment", ["puredrop: ignore[PD101]", "noqa: PD101", "noqa: E501, PD101", "puredrop: ignore", "noqa: pd101  why"]
)
def test_comments_that_leave_a_finding_out(comment, src, run):
    (src / "bad.py").write_text(source(f"        x = F.dropout(x, 0.5)  # {comment}\n"))
    assert run("src")[0] == 0


# Baselines.


def test_a_baseline_reports_only_what_is_new(src, run, tmp_path, monkeypatch):
    code, out, error = run("src", "--write-baseline", "known.json")
    assert (code, out) == (0, "no findings (2 calls that drop, in 2 files)\n")
    assert error == "1 finding of the baseline not shown\n"
    assert Path("known.json").read_text().endswith("}\n")  # as hooks on committed files want it
    record = json.loads(Path("known.json").read_text())
    assert record["format"] == 1
    (entry,) = record["findings"]
    assert {name: entry[name] for name in ("count", "target", "code", "text")} == {
        "count": 1, "target": "src/bad.py", "code": "PD101", "text": "x = F.dropout(x, 0.5)",
    }  # fmt: skip
    # Moved lines stay known; a second copy, another line and another file are new.
    (src / "bad.py").write_text("# Moved.\n\n" + source("        # Deeper.\n", BAD))
    assert run("src", "--baseline", "known.json")[0] == 0
    (src / "bad.py").write_text(source(BAD, GOOD, BAD))
    code, out, _ = run("src", "--baseline", "known.json")
    assert (code, re.findall(r"(\d+):\d+: error", out)) == (1, ["9"])
    (src / "bad.py").write_text(source(BAD.replace("0.5", "0.4")))
    assert run("src", "--baseline", "known.json")[0] == 1
    (src / "bad.py").write_text(source(BAD))
    shutil.copy(src / "bad.py", src / "copy.py")
    code, out, _ = run("src", "--baseline", "known.json")
    assert (code, out.splitlines()[0].partition(":")[0]) == (1, "src/copy.py")
    # Paths are relative to the file, wherever the command runs.
    (src / "copy.py").unlink()
    monkeypatch.chdir(src)
    assert run(".", "--baseline", str(Path("..", "known.json")))[0] == 0
    assert run(str(src), "--baseline", str(tmp_path / "known.json"))[0] == 0


def test_fixed_findings_are_said_where_their_files_were_checked(src, run):
    (src / "bad.py").write_text(source(BAD, BAD, UNKNOWN))
    (src / "gone.py").write_text(source(BAD))
    run("src", "--write-baseline", "known.json")
    (src / "bad.py").write_text(source(BAD, GOOD, GOOD))
    (src / "gone.py").unlink()
    said = "findings of the baseline no longer found: write it again with --write-baseline\n"
    assert run("src", "--baseline", "known.json")[2].endswith(f"\n3 {said}")
    assert run("src/bad.py", "--baseline", "known.json")[2].endswith(f"\n2 {said}")
    assert "no longer" not in run("src/good.py", "--baseline", "known.json")[2]
    assert run("src", "--baseline", "known.json", "--ignore", "PD101")[2].startswith("1 finding of the baseline no")
    (src / "bad.py").write_text("F.dropout(\n")
    code, out, error = run("src", "--baseline", "known.json")
    assert (code, out.count("PD001: the file cannot be read")) == (2, 2)
    assert error.startswith("1 finding of the baseline no longer")


def test_files_that_cannot_be_read_may_be_known(src, run):
    (src / "old.py").write_text("F.dropout(x)\nprint x\n")
    assert run("src")[0] == 2
    run("src", "--write-baseline", "known.json")
    (src / "old.py").write_text("\n\nF.dropout(x)\nprint x\n")
    assert run("src", "--baseline", "known.json")[0] == 0


def test_a_baseline_of_a_model_knows_its_places(models, run):
    assert run(f"{models}:bad", "--input", "2,4", "--write-baseline", "known.json")[0] == 0
    assert run(f"{models}:bad", "--input", "2,4", "--baseline", "known.json")[0] == 0
    code, out, error = run(f"{models}:worse", "--input", "2,4", "--baseline", "known.json")
    assert code == 1  # another model
    assert "no longer" not in error
    path = Path(f"{models}.py")
    path.write_text(path.read_text().replace("def bad", "def another").replace("def worse", "def bad"))
    del sys.modules[models]
    code, out, error = run(f"{models}:bad", "--input", "2,4", "--baseline", "known.json")
    assert code == 1
    assert "PD302" in out
    assert "PD303" not in out
    assert error == "1 finding of the baseline not shown\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "No such file or directory; a baseline is written with --write-baseline"),
        (lambda text: "{", "is corrupt"),
        (lambda text: "[]", "it holds list, not an object"),
        (lambda text: "{}", "no format number, expected format 1"),
        (lambda text: '{"format": 2}', "format 2, expected format 1"),
        (lambda text: '{"format": 1}', "is no baseline of puredrop check; write it again with --write-baseline"),
        (lambda text: '{"format": 1, "findings": [7]}', "is no baseline"),
        (lambda text: '{"format": 1, "findings": [{"fingerprint": 3, "count": 1}]}', "is no baseline"),
        (lambda text: text.replace("bad.py", "sad.py"), "its checksum is wrong"),
    ],
)
def test_an_unknown_or_broken_baseline_is_one_line(change, message, src, run):
    run("src", "--write-baseline", "known.json")
    path = Path("known.json")
    path.write_text(change(path.read_text())) if change else path.unlink()
    code, out, error = run("src", "--baseline", "known.json")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert error.startswith("puredrop check: error: known.json")
    assert message in error


def test_a_baseline_that_cannot_be_written_or_would_not_be_whole(src, run):
    code, out, error = run("src", "--write-baseline", "nowhere/known.json")
    assert (code, out) == (2, "")
    assert "cannot write nowhere/known.json: the folder nowhere has vanished" in error
    code, _, error = run("src", "missing.py", "--write-baseline", "known.json")
    assert code == 2
    assert error.startswith("puredrop check: error: known.json is not written: missing.py: no such file")
    assert not Path("known.json").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["check", "src", "--baseline", "a", "--write-baseline", "b"])
