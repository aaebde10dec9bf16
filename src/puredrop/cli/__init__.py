"""The command line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from puredrop.cli._options import add_data, add_explanation, add_inputs, add_prediction, add_training

if TYPE_CHECKING:
    from puredrop.linting import Report

__all__ = ["main"]

# What the extra `study` installs, by import name.
_STUDY = ("jinja2", "pandas", "plotly", "pooch", "pyarrow", "rich", "safetensors", "scipy", "sklearn", "torchmetrics")

_EXAMPLES = """\
examples:
  puredrop compare
  puredrop compare digits --sweep 0:0.8:0.1
  puredrop compare mnist --data-dir DIR --epochs 20
  puredrop compare sales.csv --target price --group customer --rates 0.2,0.2
  puredrop compare sales.csv --target price --model mymodels:small
  puredrop compare --resume
"""


_EXPLAIN_EXAMPLES = """\
examples:
  puredrop explain runs/digits
  puredrop explain mymodels:small digits --weights small.safetensors
  puredrop explain mymodels:small sales.csv --target price --weights small.pt --against plain.pt
  puredrop explain my-finetuned-bert reviews.csv --columns text --target label
"""


class _Parser(argparse.ArgumentParser):
    """Errors take one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """What a bug report should begin with; looked up only when asked for, since torch takes a second to load."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from puredrop._backend import backend, library

        try:
            loaded = library()
        except (OSError, ValueError) as error:
            parser.error(str(error))
        how = f"{backend()} ({loaded.isa})" if loaded else f"{backend()} (no compiled library in use)"
        print(f"puredrop {version('puredrop')}, torch {version('torch')}, backend: {how}")
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="puredrop", description="Dropout done right for PyTorch.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and the backend, and exit")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train with and without dropout on real data and write a page that shows what it did",
        description="Train the same network with and without dropout, from the same weights on the same batches,\n"
        "several seeds together, and write a page that shows what dropout did.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data(compare.add_argument_group("data"))
    add_training(compare.add_argument_group("network and training"))
    compare.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: runs/NAME)")
    compare.add_argument("--tensorboard", action="store_true", help="write losses for TensorBoard to DIR/tensorboard")
    compare.add_argument("--resume", action="store_true", help="go on with the unfinished run in the output folder")
    compare.set_defaults(run=_compare)
    sites = commands.add_parser(
        "sites",
        help="run a model once and list every place where it drops",
        description="Run a model once in training and once in eval mode, and list every place where it drops.",
    )
    sites.add_argument(
        "model", metavar="MODULE:FACTORY", help="a function without arguments that returns a model, or (model, inputs)"
    )
    add_inputs(sites)
    sites.add_argument("--json", action="store_true", help="print the sites as JSON")
    sites.set_defaults(run=_sites)
    check = commands.add_parser(
        "check",
        help="name the mistakes that a model's dropout, or source files, make",
        description="Name the mistakes that a model's dropout makes, or those that source files show.",
    )
    check.add_argument(
        "targets", nargs="+", metavar="MODEL|PATH", help="one model as module:factory, or files and folders of source"
    )
    add_inputs(check)
    check.add_argument("--format", choices=("text", "json", "sarif", "github"), default="text", help="default: text")
    check.add_argument("--fix", action="store_true", help="of files: mend what can be mended safely")
    check.set_defaults(run=_check)
    predict = commands.add_parser(
        "predict",
        help="run the ensemble of a model's sub-networks over a file of rows",
        description="Run the ensemble of a trained model's sub-networks over a file of rows, and write mean, variance\n"
        "and uncertainty of each as Parquet. A run that was stopped goes on when it is started again; under\n"
        "torchrun the processes share the rows.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_prediction(predict)
    predict.set_defaults(run=_predict)
    explain = commands.add_parser(
        "explain",
        help="write the page that says what dropout did to a trained model of yours",
        description="Measure what dropout did to a trained model, and write a page that says it.",
        epilog=_EXPLAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_explanation(explain)
    explain.set_defaults(run=_explain)
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    missing = [name for name in _STUDY if importlib.util.find_spec(name) is None]
    if arguments.tensorboard and importlib.util.find_spec("tensorboard") is None:
        return _fail(
            "compare",
            "--tensorboard needs the package tensorboard; install it with: pip install 'puredrop[tensorboard]'",
        )
    if missing:
        return _fail(
            "compare", f"compare needs {', '.join(missing)}; install what it needs with: pip install 'puredrop[study]'"
        )
    from rich.console import Console

    from puredrop.compare import terminal
    from puredrop.compare.options import CompareOptions
    from puredrop.compare.run import prepare
    from puredrop.compare.share import is_first

    options = {field.name: getattr(arguments, field.name) for field in fields(CompareOptions)}
    try:
        run = prepare(CompareOptions(**options))
    except (ValueError, OSError) as error:
        return _fail("compare", _line(error, (ValueError, OSError))) if is_first() else 2
    if run.share.rank:
        run.execute()
        return run.share.end(0)
    for note in run.data.notes:
        print(note, file=sys.stderr)
    try:
        found = terminal.execute(run, Console(stderr=True))
    except KeyboardInterrupt:
        again = [word for word in arguments.line if word != "--resume"]
        print(f"stopped; go on with: puredrop {shlex.join([*again, '--resume'])}", file=sys.stderr)
        return 130
    terminal.summary(found, run.folder / "report.html", Console())
    return run.share.end(0)


def _sites(arguments: argparse.Namespace) -> int:
    from puredrop.inspection import load, sites

    try:
        model, inputs, named = load(arguments.model, arguments.input)
        found = sites(model, *inputs, **named)
    except Exception as error:  # whatever the user's code raises is the answer
        return _fail("sites", _line(error))
    print(json.dumps([asdict(site) for site in found], indent=1) if arguments.json else found)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from puredrop.linting.formats import FORMATS

    models = [target for target in arguments.targets if ":" in target and not Path(target).exists()]
    if models and len(arguments.targets) > 1:
        return _fail("check", f"{models[0]} is a model; expected it alone, or files and folders only")
    if not models and importlib.util.find_spec("libcst") is None:
        return _fail("check", "files need libcst; install it with: pip install 'puredrop[check]'")
    try:
        report = _of_model(models[0], arguments) if models else _of_files(arguments)
    except Exception as error:  # whatever the user's code raises is the answer
        return _fail("check", _line(error))
    print(FORMATS[arguments.format](report))
    return 0 if report.ok else 1


def _predict(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("pandas", "pyarrow", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            "predict", f"predict needs {', '.join(missing)}; install what it needs with: pip install 'puredrop[study]'"
        )
    from puredrop.cli._job import Request, execute, prepare

    try:
        execute(prepare(Request(**{field.name: getattr(arguments, field.name) for field in fields(Request)})))
    except KeyboardInterrupt:
        print(f"stopped; go on with: puredrop {shlex.join(arguments.line)}", file=sys.stderr)
        return 130
    except Exception as error:  # whatever the user's model raises is the answer
        return _fail("predict", _line(error, (ValueError, OSError)))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    missing = [name for name in _STUDY if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            "explain", f"explain needs {', '.join(missing)}; install what it needs with: pip install 'puredrop[study]'"
        )
    from puredrop.cli._explanation import Request, execute, prepare

    try:
        job = prepare(Request(**{field.name: getattr(arguments, field.name) for field in fields(Request)}))
        found, page = execute(job, arguments.line)
    except Exception as error:  # whatever the user's model raises is the answer
        return _fail("explain", _line(error, (ValueError, OSError)))
    print(found.verdict)
    for finding in found.findings:
        print(f"{'held' if finding.held else 'did not hold'}: {finding.text}")
    print(f"page: {page}")
    return 0


def _of_model(spec: str, arguments: argparse.Namespace) -> Report:
    from puredrop.inspection import load
    from puredrop.linting import check

    if arguments.fix:
        raise ValueError("--fix is for files; a model is not changed")
    model, inputs, named = load(spec, arguments.input)
    return check(model, *inputs, **named)


def _of_files(arguments: argparse.Namespace) -> Report:
    from puredrop.linting.source import check_paths

    if arguments.input:
        raise ValueError("--input is for a model; files are not run")
    return check_paths([Path(target) for target in arguments.targets], arguments.fix)


def _line(error: Exception, speaks: type[Exception] | tuple[type[Exception], ...] = ValueError) -> str:
    """An error in one line, with the name of its class unless it is of those that speak for themselves."""
    text, name = " ".join(str(error).split()), type(error).__name__
    return text if text and isinstance(error, speaks) else f"{name}: {text}" if text else name


def _fail(command: str, message: str) -> int:
    print(f"puredrop {command}: error: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; sys.argv's if not given.

    Returns:
        The exit code: 0, 2 for bad input (one line on stderr, nothing written), 130 after Ctrl-C.
    """
    line = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(line, argparse.Namespace(line=line))
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    return code
