"""`puredrop compare`: train with and without dropout on real data and write a page that shows what dropout did."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puredrop._options import add_options, read_options
from puredrop._text import one_line
from puredrop.cli.errors import STUDY, fail, missing
from puredrop.compare.options import CompareOptions

if TYPE_CHECKING:
    from rich.console import Console

    from puredrop.compare.run import Comparison
    from puredrop.compare.training import Arm

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "execute", "run", "summary"]

HELP = "train with and without dropout on real data and write a page that shows what it did"
DESCRIPTION = (
    "Train the same network with and without dropout, from the same weights on the same batches,\n"
    "several seeds together, and write a page that shows what dropout did."
)
EXAMPLES = """\
examples:
  puredrop compare
  puredrop compare digits --sweep 0:0.8:0.1
  puredrop compare mnist --data-dir DIR --epochs 20
  puredrop compare sales.csv --target price --group customer --rates 0.2,0.2
  puredrop compare sales.csv --target price --model mymodels:small
  puredrop compare --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, CompareOptions)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, write, print the summary, and return the exit code: 130 after Ctrl-C."""
    absent = missing("compare", STUDY)
    if arguments.tensorboard and importlib.util.find_spec("tensorboard") is None:
        absent = "--tensorboard needs the package tensorboard; install it with: pip install 'puredrop[tensorboard]'"
    if absent:
        return fail("compare", absent)
    from rich.console import Console

    from puredrop.compare.processes import is_first
    from puredrop.compare.run import prepare

    try:
        comparison = prepare(read_options(CompareOptions, arguments))
    except (ValueError, OSError, MemoryError) as error:
        return fail("compare", one_line(error, (ValueError, OSError))) if is_first() else 2
    if comparison.worker.rank:
        comparison.execute()
        return comparison.worker.end(0)
    for note in comparison.data.notes:
        print(note, file=sys.stderr)
    words = [word for word in arguments.line if word != "--resume"]
    go_on = f"go on with: puredrop {shlex.join([*words, '--resume'])}"
    try:
        results = execute(comparison, Console(stderr=True))
    except KeyboardInterrupt:
        print(f"stopped; {go_on}", file=sys.stderr)
        return 130
    except (BlockingIOError, ValueError) as error:  # another run has the folder
        return comparison.worker.end(fail("compare", one_line(error, (BlockingIOError, ValueError))))
    except (OSError, MemoryError) as error:
        fix = f"; when that is mended, {go_on}" if comparison.checkpoint.is_file() else ""
        return comparison.worker.end(fail("compare", one_line(error, (OSError,)) + fix))
    summary(results, comparison.folder / "report.html", Console())
    return comparison.worker.end(0)


def execute(comparison: Comparison, console: Console) -> dict[str, Any]:
    """Execute a run under a progress display; print nothing where the console is no terminal.

    Args:
        comparison: as prepared.
        console: where to show progress.

    Returns:
        The results, as in results.json.
    """
    from puredrop.compare.evaluation import MEMBERS

    def on_measure() -> None:
        if console.is_terminal:
            console.print(f"measuring: one pass of each arm, {MEMBERS} members of the one with dropout")

    with _bars(comparison, console) as on_epoch:
        return comparison.execute(on_epoch, on_measure)


@contextmanager
def _bars(comparison: Comparison, console: Console) -> Iterator[Callable[[str, Arm], None]]:
    """Give a function that draws an arm's progress after an epoch."""
    from puredrop.cli.progress import progress
    from puredrop.compare.wording import ARM_NAMES

    with progress(console, "epochs") as display:
        bars = {}
        for name in comparison.trained:
            epoch = comparison.arms[name].epoch if name in comparison.arms else 0
            bars[name] = display.add_task(
                ARM_NAMES[name], total=comparison.epochs, start=False, note="", completed=epoch
            )

        def on_epoch(name: str, arm: Arm) -> None:
            best = sum(map(min, zip(*arm.validation_loss, strict=True))) / len(arm.best_epoch)
            total = arm.epoch if arm.finished(comparison.epochs) else comparison.epochs
            display.start_task(bars[name])
            display.update(bars[name], completed=arm.epoch, total=total, note=f"validation loss {best:.4f}")

        yield on_epoch


def summary(results: dict[str, Any], page: Path, console: Console) -> None:
    """Print one line for each main difference, and the page's path.

    Args:
        results: as in results.json.
        page: the page's path.
        console: where to print.
    """
    from rich.text import Text

    from puredrop.compare.evaluation import MEMBERS
    from puredrop.compare.wording import quantities

    is_regression = results["identity"]["task"] == "regression"
    labels = {
        "nll": "NLL", "error": "RMSE" if is_regression else "error", "gap": "gap", "mc_nll": f"MC {MEMBERS}",
        "batchwise_nll": "batchwise", "networks_nll": "networks",
    }  # fmt: skip
    # A pipe has no width to keep to; a terminal gets one line each from 80 columns on.
    is_short = console.is_terminal and console.width < 112
    lines = []
    measured = quantities(results)
    for key, label in labels.items():
        if key in measured:
            q = measured[key]
            style = "bold" if results["differences"][key]["found"] else ""
            claim = Text(q.claim(results, short=is_short), style=style)
            lines.append((label, " → ".join(q.means(results)), q.interval(results), claim))
    widths = [max(len(str(line[i])) for line in lines) for i in range(3)]
    for line in lines:
        label, *middle = (str(text).ljust(width) for text, width in zip(line, widths, strict=False))
        console.print(Text.assemble((label, "bold"), "  ", "  ".join(middle), "  ", line[3]), soft_wrap=True)
    console.print(Text.assemble(("page".ljust(widths[0]), "bold"), "  ", str(page)), soft_wrap=True)
