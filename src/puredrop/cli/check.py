"""`puredrop check`: name the mistakes that a model's dropout, or source files, make."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from puredrop._text import counted, one_line
from puredrop.cli.check_progress import CheckProgress
from puredrop.cli.errors import fail
from puredrop.cli.model_inputs import add_inputs

if TYPE_CHECKING:
    from puredrop.linting import Report
    from puredrop.linting.baseline import Baseline
    from puredrop.linting.source.targets import Targets

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "name the mistakes that a model's dropout, or source files, make"
DESCRIPTION = "Name the mistakes that a model's dropout makes, or those that source files\nshow."
EXAMPLES = """exit code: 0 nothing found, 1 findings, 2 something could not be checked

  puredrop check src/ --write-baseline dropout.json   the present findings are known
  puredrop check src/ --baseline dropout.json         only what is new"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the targets, and how findings are printed."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="MODEL|PATH",
        help="one model as module:factory (the module is imported and runs), or files and folders of source",
    )
    add_inputs(parser)
    parser.add_argument("--format", choices=("text", "json", "sarif", "github"), default="text", help="default: text")
    parser.add_argument(
        "--ignore", default="", metavar="CODES", help="codes that are not reported, such as PD002,PD403"
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--baseline", metavar="FILE", help="report only what is not in this file")
    known.add_argument("--write-baseline", metavar="FILE", help="write the present findings to this file")
    parser.add_argument("--fix", action="store_true", help="of files: mend what can be mended safely")


@dataclass(frozen=True)
class _Checked:
    """Result of a check: the report, and the model or the files it is about."""

    report: Report
    model: str = ""
    targets: Targets | None = None

    def covers(self, target: str, folder: Path) -> bool:
        """Return whether a target of a baseline in a folder was checked."""
        if self.targets is None or self.report.problems:
            return target == self.model
        unread = {Path(finding.file).resolve() for finding in self.report if finding.code == "PD001"}
        return self.targets.covers(folder / target) and (folder / target).resolve() not in unread


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and return the exit code: 1 where there are any, 2 where something could not be checked."""
    from puredrop.linting.baseline import read_baseline

    models = [target for target in arguments.targets if ":" in target and not Path(target).exists()]
    if models and len(arguments.targets) > 1:
        return fail("check", f"{models[0]} is a model; expected it alone, or files and folders only")
    try:
        ignored = _codes(arguments.ignore)
        baseline = read_baseline(Path(arguments.baseline)) if arguments.baseline else None
        checked = _check_model(models[0], arguments) if models else _check_files(arguments)
        checked = _without(checked, ignored)
        if arguments.write_baseline:
            baseline = _written(Path(arguments.write_baseline), checked)
    except Exception as error:  # whatever the user's code raises is the answer
        return fail("check", one_line(error))
    return _print(checked, baseline, arguments.format, ignored)


def _codes(text: str) -> frozenset[str]:
    """Return the codes of --ignore."""
    from puredrop.linting import CODES

    codes = [code for code in text.upper().replace(",", " ").split() if code]
    for code in codes:
        if code not in CODES:
            nearest = max(CODES, key=lambda known: difflib.SequenceMatcher(None, code, known).ratio())
            raise ValueError(f"--ignore has {code}, which is no code; the nearest is {nearest}: {CODES[nearest].title}")
    return frozenset(codes)


def _check_model(spec: str, arguments: argparse.Namespace) -> _Checked:
    from puredrop.inspection import load
    from puredrop.linting import check

    if arguments.fix:
        raise ValueError("--fix is for files; a model is not changed")
    model, inputs, named = load(spec, arguments.input)
    report = check(model, *inputs, **named)
    if not report.findings and not report.checked:
        raise ValueError(str(report))
    return _Checked(report, model=spec)


def _check_files(arguments: argparse.Namespace) -> _Checked:
    from puredrop.linting.source import check_files, fix_files
    from puredrop.linting.source.targets import find_targets

    if arguments.input:
        raise ValueError("--input is for a model; files are not run")
    targets = find_targets(arguments.targets)
    problems = list(targets.problems)
    for file in targets.files if arguments.fix else ():
        try:
            fix_files([file])
        except OSError as error:
            problems.append(one_line(error, (OSError,)))
    with CheckProgress() as progress:
        report = check_files(targets.files, progress, processes=os.cpu_count() or 1)
    is_empty = not report.checked and all(finding.code == "PD001" for finding in report)
    if targets.files and targets.folders and is_empty:
        problems.append(f"nothing to check: no call that drops in {counted(len(targets.files), 'file')}")
    return _Checked(replace(report, problems=tuple(problems)), targets=targets)


def _without(checked: _Checked, codes: frozenset[str]) -> _Checked:
    """Return a result without the findings of some codes."""
    kept = tuple(finding for finding in checked.report if finding.code not in codes)
    return replace(checked, report=replace(checked.report, findings=kept))


def _written(path: Path, checked: _Checked) -> Baseline:
    """Write all findings as known ones, and return the baseline."""
    from puredrop.linting.baseline import read_baseline, write_baseline

    if checked.report.problems:
        raise ValueError(f"{path} is not written: {checked.report.problems[0]}")
    write_baseline(path, checked.report.findings, checked.model)
    return read_baseline(path)


def _print(checked: _Checked, baseline: Baseline | None, format: str, ignored: frozenset[str]) -> int:
    """Print what is new, and what could not be checked; return the exit code."""
    from puredrop.linting.baseline import fingerprints
    from puredrop.linting.formats import FORMATS

    folder = baseline.folder if baseline else Path()
    every = list(zip(checked.report, fingerprints(checked.report.findings, folder, checked.model), strict=True))
    new = [(finding, text) for finding, text in every if baseline is None or not baseline.knows(text)]
    report = replace(checked.report, findings=tuple(finding for finding, _ in new))
    if report.findings or report.checked or not report.problems or format != "text":
        _show(FORMATS[format](report, [text for _, text in new]))
    for problem in report.problems:
        fail("check", problem)
    if baseline is not None:
        _say_known(baseline, checked, [text for _, text in every], len(every) - len(new), ignored)
    if report.problems or any(finding.code == "PD001" for finding in report):
        return 2
    return 1 if report.findings else 0


def _say_known(baseline: Baseline, checked: _Checked, present: list[str], known: int, ignored: frozenset[str]) -> None:
    """Say on stderr how many findings are not shown, and how many of the baseline are no more."""
    fixed = baseline.fixed(
        present, lambda target, code: code not in ignored and checked.covers(target, baseline.folder)
    )
    if known:
        print(f"{counted(known, 'finding')} of the baseline not shown", file=sys.stderr)
    if fixed:
        text = f"{counted(fixed, 'finding')} of the baseline no longer found: write it again with --write-baseline"
        print(text, file=sys.stderr)


def _show(text: str) -> None:
    """Print a text, with escapes for characters that the terminal does not have."""
    if text:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))
