"""`puredrop explain`: write the page that says what dropout did to a trained model."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from puredrop._options import add_options, names, option, read_options
from puredrop._text import one_line
from puredrop.cli.errors import STUDY, fail, missing

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "ExplainRequest", "add_arguments", "run"]

HELP = "write the page that says what dropout did to a trained model of yours"
DESCRIPTION = "Measure what dropout did to a trained model, and write a page that says it."
EXAMPLES = """\
examples:
  puredrop explain runs/digits
  puredrop explain mymodels:small digits --weights small.safetensors
  puredrop explain mymodels:small sales.csv --target price --weights small.pt --against plain.pt
  puredrop explain my-finetuned-bert reviews.csv --columns text --target label
"""


@dataclass(frozen=True)
class ExplainRequest:
    """Options of `puredrop explain`: each field is one, and its help says what it means."""

    model: str = option(
        MISSING, "module:factory, a Hugging Face folder, or the folder of a run of compare", positional=True,
        metavar="MODEL",
    )  # fmt: skip
    data: str | None = option(
        None, "digits, mnist, or a .csv, .parquet or .npz file; of a run: its own", positional=True, nargs="?",
        metavar="DATA",
    )  # fmt: skip
    weights: Path | None = option(
        None, "of a factory: the state, .safetensors or what torch.save wrote", type=Path, metavar="FILE"
    )
    against: Path | None = option(
        None, "the state of the same model trained without dropout", type=Path, metavar="FILE"
    )
    target: str | None = option(None, "of a file: the column, or array (default: y), to predict", metavar="NAME")
    columns: tuple[str, ...] | None = option(
        None, "features in the model's order (default: all numeric columns), or one of text; arrays of an .npz file",
        type=names, metavar="A,B",
    )  # fmt: skip
    task: Literal["classification", "regression"] | None = option(
        None, "default: by the target's type", choices=("classification", "regression")
    )
    data_dir: Path | None = option(None, "folder of MNIST's four IDX files (.gz)", type=Path, metavar="DIR")
    rows: int = option(1024, "look at so many rows at most (default: 1024)", type=int, metavar="N")
    members: int = option(64, "masks and members to run (default: 64)", type=int, metavar="N")
    seed: int = option(0, "of masks and of the choice of rows (default: 0)", type=int, metavar="N")
    copy: int = option(0, "of a run: which of its seeds (default: 0)", type=int, metavar="N")
    out: Path | None = option(
        None, "output folder (default: the run's, or runs/NAME-explain)", type=Path, metavar="DIR"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, ExplainRequest)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print its main sentences, and return the exit code."""
    absent = missing("explain", STUDY)
    if absent:
        return fail("explain", absent)
    from puredrop.cli.explain_job import execute, prepare

    try:
        explanation, page = execute(prepare(read_options(ExplainRequest, arguments)), arguments.line)
    except Exception as error:  # whatever the user's model raises is the answer
        return fail("explain", one_line(error, (ValueError, OSError)))
    print(explanation.verdict)
    for claim in explanation.findings:
        print(f"{'held' if claim.held else 'did not hold'}: {claim.text}")
    print(f"page: {page}")
    return 0
