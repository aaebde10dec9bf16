"""Inputs that `sites` and `check` run a model on."""

from __future__ import annotations

import argparse

from puredrop._options import numbers

__all__ = ["add_inputs"]


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the option --input."""
    parser.add_argument(
        "--input",
        type=numbers(int, "1,3,224,224"),
        action="append",
        default=[],
        metavar="N,N",
        help="sizes of a float input to run the model on, if the factory returns none; once for each",
    )
