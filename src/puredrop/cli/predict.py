"""`puredrop predict`: run the ensemble of a trained model's sub-networks over a file of rows."""

from __future__ import annotations

import argparse
import shlex
import sys

from puredrop._options import add_options, read_options
from puredrop._text import one_line
from puredrop.cli.errors import fail, missing
from puredrop.cli.requests import PredictRequest

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "run the ensemble of a model's sub-networks over a file of rows"
DESCRIPTION = (
    "Run the ensemble of a trained model's sub-networks over a file of rows, and write mean, variance\n"
    "and uncertainty of each as Parquet. A run that was stopped goes on when it is started again; under\n"
    "torchrun the processes share the rows."
)
EXAMPLES = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, PredictRequest)


def run(arguments: argparse.Namespace) -> int:
    """Write the predictions and return the exit code: 130 after Ctrl-C."""
    absent = missing("predict", ("pandas", "pyarrow", "rich", "safetensors"))
    if absent:
        return fail("predict", absent)
    from puredrop.cli.predict_job import execute, prepare

    try:
        execute(prepare(read_options(PredictRequest, arguments)))
    except KeyboardInterrupt:
        print(f"stopped; go on with: puredrop {shlex.join(arguments.line)}", file=sys.stderr)
        return 130
    except Exception as error:  # whatever the user's model raises is the answer
        return fail("predict", one_line(error, (ValueError, OSError)))
    return 0
