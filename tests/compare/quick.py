"""`puredrop` without the explanation of a network, which takes longer than the rest of a run: `quick.py COMMAND...`.

A first argument `eager` has every epoch saved.
"""

import sys

from puredrop.cli import main
from puredrop.compare import run


def unexplained(asked, exclude):
    """What stands in the place of the explanation."""
    return run.Explanation("", (), (), {"model": "not in this test"})


if __name__ == "__main__":
    run.analyse = unexplained
    if sys.argv[1] == "eager":
        run._SECONDS_BETWEEN_CHECKPOINTS = 0.0
        sys.argv.pop(1)
    sys.exit(main(sys.argv[1:]))
