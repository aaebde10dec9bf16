"""`puredrop check`: name the mistakes that a model's dropout, or source files, make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from puredrop._text import one_line
from puredrop.cli.errors import fail
from puredrop.cli.model_inputs import add_inputs

if TYPE_CHECKING:
    from puredrop.linting import Report

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "name the mistakes that a model's dropout, or source files, make"
DESCRIPTION = "Name the mistakes that a model's dropout makes, or those that source files\nshow."
EXAMPLES = ""


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
    parser.add_argument("--fix", action="store_true", help="of files: mend what can be mended safely")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and return the exit code: 1 where there are any."""
    from puredrop.linting.formats import FORMATS

    models = [target for target in arguments.targets if ":" in target and not Path(target).exists()]
    if models and len(arguments.targets) > 1:
        return fail("check", f"{models[0]} is a model; expected it alone, or files and folders only")
    try:
        report = _check_model(models[0], arguments) if models else _check_files(arguments)
    except Exception as error:  # whatever the user's code raises is the answer
        return fail("check", one_line(error))
    print(FORMATS[arguments.format](report))
    if any(finding.code == "PD001" for finding in report):
        return 2
    return 0 if report.ok else 1


def _check_model(spec: str, arguments: argparse.Namespace) -> Report:
    from puredrop.inspection import load
    from puredrop.linting import check

    if arguments.fix:
        raise ValueError("--fix is for files; a model is not changed")
    model, inputs, named = load(spec, arguments.input)
    return check(model, *inputs, **named)


def _check_files(arguments: argparse.Namespace) -> Report:
    from puredrop.linting.source import check_files, find_files, fix_files

    if arguments.input:
        raise ValueError("--input is for a model; files are not run")
    files = find_files([Path(target) for target in arguments.targets])
    if arguments.fix:
        fix_files(files)
    return check_files(files, processes=os.cpu_count() or 1)
