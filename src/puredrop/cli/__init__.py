"""The command line; each command has a file of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from puredrop._text import one_line, printable
from puredrop.cli import check, compare, explain, predict, sites, verify
from puredrop.cli.errors import fail

__all__ = ["main"]

_COMMANDS = {
    "compare": compare, "sites": sites, "check": check, "predict": predict, "explain": explain, "verify": verify,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: error: {message} (see {self.prog} --help)") + "\n")


class _Version(argparse.Action):
    """Print what a bug report begins with."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from puredrop._backend import backend, library

        try:
            loaded = library()
        except (OSError, ValueError) as error:
            parser.error(str(error))
        how = f"{backend()} ({loaded.isa})" if loaded else f"{backend()} (no compiled library in use)"
        print(f"puredrop {version('puredrop')}, torch {version('torch')}, backend: {how}")
        parser.exit(0)


def _parser(line: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="puredrop", description="Dropout done right for PyTorch.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and the backend, and exit")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in line:  # no other command's options are read
            command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of sys.argv if None.

    Returns:
        The exit code: 0; 1 where `check` found mistakes or `verify` a corrupt file; 2 for bad input (one line on
        stderr, nothing written); 130 after Ctrl-C; 141 where the reader of the output has closed it.
    """
    line = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(line).parse_args(line, argparse.Namespace(line=line))
    try:
        code: int = arguments.run(arguments)
        if sys.stdout is not None:  # as where a service starts the command without one
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has read enough
        _drop_output()
        return 141
    except OSError as error:  # of the output, such as a full disk
        _drop_output()
        return fail(arguments.command, one_line(error, (OSError,)))
    return code


def _drop_output() -> None:
    """Let what is still to be printed go nowhere, so that the interpreter does not fail on it as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
