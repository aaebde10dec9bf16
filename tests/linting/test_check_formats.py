"""Findings for other programs: SARIF, GitHub's annotations and JSON; the pre-commit hook and the action."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from command_tree import BAD, run, source, src

from puredrop.linting import CODES, Finding, Report
from puredrop.linting.baseline import fingerprints
from puredrop.linting.formats import FORMATS

__all__ = ["run", "src"]

ROOT = Path(__file__).parents[2]


FINDINGS = (
    Finding("PD101", "a b/ä,%.py", "p=50%\r\nmore", 3, 7, "a b/ä,%.py", text="x"),
    Finding("PD002", "n.ipynb", "", 4, 2, "n.ipynb", cell=5, text="y"),
    Finding("PD001", "lost.py", "Permission denied", 0, 1, "lost.py"),
    Finding("PD303", "encoder.drop", "p=0.95"),
)


def test_github_commands_are_escaped(src):
    lines = FORMATS["github"](Report(FINDINGS, 4, 3), ["a:1"] * 4).splitlines()
    assert lines[0].startswith(
        "::error file=a b/ä%2C%25.py,line=3,col=7,title=puredrop PD101::functional dropout is always on: p=50%25%0D%0Amore - "
    )
    assert lines[1].startswith("::notice file=n.ipynb,line=1,title=puredrop PD002::cell 5, line 4: not decided")
    assert lines[2].startswith("::error file=lost.py,line=1,col=1,title=puredrop PD001::the file cannot be read")
    assert lines[3].startswith("::warning title=puredrop PD303::the rate is 0.9 or more: p=0.95 - ")
    assert lines[3].endswith(" (encoder.drop)")
    assert len(lines) == 4


def test_sarif_has_what_its_schema_requires(src):
    log = json.loads(FORMATS["sarif"](Report(FINDINGS, 4, 3, ("gone: no such file",)), ["a:1", "b:1", "b:2", "c:1"]))
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CODES)
    levels = {"none", "note", "warning", "error"}
    assert {rule["defaultConfiguration"]["level"] for rule in rules} <= levels
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "gone: no such file"
    assert run["columnKind"] == "unicodeCodePoints"
    for result, finding in zip(run["results"], FINDINGS, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["level"] in levels
        assert result["message"]["text"] == finding.message
        assert result["properties"] == {"severity": finding.severity}
    assert [one["partialFingerprints"] for one in run["results"]] == [
        {"puredrop/v1": text} for text in ("a:1", "b:1", "b:2", "c:1")
    ]
    first, cell, lost, model = (result["locations"][0] for result in run["results"])
    uri = first["physicalLocation"]["artifactLocation"]["uri"]
    assert re.fullmatch(r"[\w%./-]+", uri, re.ASCII)
    assert unquote(uri) == "a b/ä,%.py"
    assert first["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 7}
    assert cell["physicalLocation"]["region"] == {"startLine": 4, "startColumn": 2}
    assert cell["logicalLocations"] == [{"name": "cell 5"}]
    assert "region" not in lost["physicalLocation"]
    assert model == {"logicalLocations": [{"fullyQualifiedName": "encoder.drop"}]}
    assert run["results"][1]["level"] == "note"


def test_sarif_files_are_relative_and_fingerprints_those_of_the_baseline(src, run, tmp_path):
    (src / "bad.py").write_text(source(BAD, BAD))
    results = json.loads(run(str(src), "--format", "sarif")[1])["runs"][0]["results"]
    places = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in results]
    assert places == ["src/bad.py"] * 2
    texts = [one["partialFingerprints"]["puredrop/v1"] for one in results]
    run("src", "--write-baseline", "known.json")
    (entry,) = json.loads(Path("known.json").read_text())["findings"]
    assert texts == [f"{entry['fingerprint']}:{number}" for number in (1, 2)]
    outside = Finding("PD101", "x", "", 1, 1, "../x y.py")
    result = json.loads(FORMATS["sarif"](Report((outside,)), ["a:1"]))["runs"][0]["results"][0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.startswith("file:///")
    assert uri.endswith("/x%20y.py")


def test_fingerprints_stay_where_lines_move(tmp_path):
    before = [
        Finding("PD101", "a.py", "p", 3, 7, "a.py", text="x"),
        Finding("PD002", "a.py", "", 3, 7, "a.py", text="x"),
    ]
    after = [Finding("PD101", "a.py", "q", 9, 1, "a.py", 4, "x"), Finding("PD002", "a.py", "", 8, 7, "a.py", text="x")]
    assert fingerprints(before, Path()) == fingerprints(after, Path())
    assert len(set(fingerprints(before, Path()))) == 2
    assert fingerprints(before, Path()) != fingerprints(before, tmp_path)
    assert [one[-2:] for one in fingerprints([before[0]] * 3, Path())] == [":1", ":2", ":3"]


def test_json_says_what_could_not_be_checked(src, run):
    code, out, error = run("src/good.py", "gone.py", "--format", "json")
    record = json.loads(out)
    assert (code, record["ok"], record["findings"]) == (2, False, [])
    assert record["problems"] == ["gone.py: no such file or folder (a model is named module:factory)"]
    assert error == f"puredrop check: error: {record['problems'][0]}\n"


# The pre-commit hook and the action.


def parsed(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / name).read_text())


def executed(src, command, **environment):
    """Run a command line with a `puredrop` of this source on the path."""
    tools = src.parent / "tools"
    tools.mkdir(exist_ok=True)
    tool = tools / "puredrop"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m puredrop "$@"\n')
    tool.chmod(0o755)
    variables = {**os.environ, **environment, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_the_hook_fails_on_bad_files_and_passes_good_ones(src):
    (hook,) = parsed(".pre-commit-hooks.yaml")
    assert (hook["id"], hook["types_or"], hook["language"]) == ("puredrop-check", ["python", "jupyter"], "system")
    command = [*hook["entry"].split(), *hook.get("args", [])]
    assert executed(src, [*command, "src/good.py"]).returncode == 0
    found = executed(src, [*command, "src/bad.py", "src/good.py"])
    assert (found.returncode, found.stdout.partition(":")[0]) == (1, "src/bad.py")


def test_the_action_runs_the_same_entry(src):
    action, (hook,) = parsed("action.yml"), parsed(".pre-commit-hooks.yaml")
    assert set(action["inputs"]) >= {"paths", "args", "version"}
    assert action["runs"]["using"] == "composite"
    step = action["runs"]["steps"][-1]
    assert hook["entry"] + " --format github" in step["run"]
    assert step["env"] == {"PATHS": "${{ inputs.paths }}", "ARGS": "${{ inputs.args }}"}
    for one in action["runs"]["steps"]:
        assert "${{" not in one.get("run", "")  # an input is data, never a command
        assert one.get("shell", "bash") == "bash"
    run = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
    found = executed(src, run, PATHS="src/bad.py src/good.py", ARGS="--ignore PD403")
    assert (found.returncode, found.stdout[:37]) == (1, "::error file=src/bad.py,line=7,col=13")
    assert executed(src, run, PATHS="src", ARGS="--ignore PD101").returncode == 0
    assert executed(src, run, PATHS="src; exit 0", ARGS="").returncode == 2
