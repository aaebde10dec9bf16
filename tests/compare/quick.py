"""`puredrop` without the explanation of a network, which takes longer than all else in a run: `quick.py COMMAND...`."""

import signal
import sys

import torch

from puredrop.cli import main
from puredrop.compare import run


def unexplained(asked, exclude):
    """What stands in the place of the explanation."""
    return run.Explanation("", (), (), {"model": "not in this test"})


def eager(arguments, threads, errors):
    """Run with a checkpoint after every epoch, so that kills fall into training, into writing and between."""
    run.analyse, run._SECONDS_BETWEEN_CHECKPOINTS = unexplained, 0.0
    torch.set_num_threads(threads)
    # A shell that runs the tests in the background has Ctrl-C ignored by everything below it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with errors.open("w") as sys.stderr:
        sys.exit(main(arguments))


if __name__ == "__main__":
    run.analyse = unexplained
    sys.exit(main(sys.argv[1:]))
