"""`puredrop sites`: run a model once and list every place where it drops."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from puredrop._text import one_line
from puredrop.cli.errors import fail
from puredrop.cli.model_inputs import add_inputs

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "run a model once and list every place where it drops"
DESCRIPTION = "Run a model once in training and once in eval mode, and list every place where\nit drops."
EXAMPLES = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and its inputs."""
    parser.add_argument(
        "model",
        metavar="MODULE:FACTORY",
        help="a function without arguments that returns a model, or (model, inputs); the module is imported and runs",
    )
    add_inputs(parser)
    parser.add_argument("--json", action="store_true", help="print the sites as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the sites and return the exit code."""
    from puredrop.inspection import load, sites

    try:
        model, inputs, named = load(arguments.model, arguments.input)
        listed = sites(model, *inputs, **named)
    except Exception as error:  # whatever the user's code raises is the answer
        return fail("sites", one_line(error))
    print(json.dumps([asdict(site) for site in listed], indent=1) if arguments.json else listed)
    return 0
