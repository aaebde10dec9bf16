"""`puredrop explain`: write the page that says what dropout did to a trained model."""

from __future__ import annotations

import argparse

from puredrop._options import add_options, read_options
from puredrop._text import one_line
from puredrop.cli.errors import STUDY, fail, missing
from puredrop.cli.requests import ExplainRequest

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "write the page that says what dropout did to a trained model of yours"
DESCRIPTION = "Measure what dropout did to a trained model, and write a page that says it."
EXAMPLES = """\
examples:
  puredrop explain runs/digits
  puredrop explain mymodels:small digits --weights small.safetensors
  puredrop explain mymodels:small sales.csv --target price --weights small.pt --against plain.pt
  puredrop explain my-finetuned-bert reviews.csv --columns text --target label
"""


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
