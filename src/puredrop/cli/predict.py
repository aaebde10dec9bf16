"""`puredrop predict`: run the ensemble of a trained model's sub-networks over a file of rows."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from puredrop._options import add_options, names, option, read_options
from puredrop._text import one_line
from puredrop.cli.errors import fail, missing

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "PredictRequest", "add_arguments", "run"]

HELP = "run the ensemble of a model's sub-networks over a file of rows"
DESCRIPTION = (
    "Run the ensemble of a trained model's sub-networks over a file of rows, and write mean, variance\n"
    "and uncertainty of each as Parquet. A run that was stopped goes on when it is started again; under\n"
    "torchrun the processes share the rows."
)
EXAMPLES = ""


@dataclass(frozen=True)
class PredictRequest:
    """Options of `puredrop predict`: each field is one, and its help says what it means."""

    model: str = option(
        MISSING, "a function without arguments that returns the trained model", positional=True,
        metavar="MODULE:FACTORY",
    )  # fmt: skip
    data: Path = option(MISSING, "a .csv, .parquet or .npz file", positional=True, type=Path, metavar="DATA")
    out: Path = option(MISSING, "the file to write", type=Path, metavar="FILE.parquet")
    members: int = option(64, "members (default: 64)", type=int, metavar="N")
    task: Literal["classification", "regression"] = option(
        "classification", "default: classification", choices=("classification", "regression")
    )
    seed: int = option(0, "of the members' masks (default: 0)", type=int, metavar="N")
    masks: Literal["shared", "independent"] = option(
        "shared", "one mask for all rows (default), or own", choices=("shared", "independent")
    )
    columns: tuple[str, ...] | None = option(
        None, "features, in the model's order (default: all numeric columns); of an .npz file: the array (default: x)",
        type=names, metavar="A,B",
    )  # fmt: skip
    weights: Path | None = option(
        None, "the model's state, .safetensors or what torch.save wrote", type=Path, metavar="FILE"
    )
    part_rows: int = option(16384, "rows that are written at once (default: 16384)", type=int, metavar="N")


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
