"""What a terminal shows: progress with the time left while it trains, five lines when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from puredrop.compare.measure import MEMBERS
from puredrop.compare.run import Comparison
from puredrop.compare.training import Arm
from puredrop.compare.wording import ARM_NAMES, quantities

__all__ = ["execute", "summary"]

_ROWS = {
    "nll": "NLL",
    "error": "error",
    "gap": "gap",
    "mc_nll": f"MC {MEMBERS}",
    "batchwise_nll": "batchwise",
    "networks_nll": "networks",
}


def execute(run: Comparison, console: Console) -> dict[str, Any]:
    """Execute a run under a progress display; quiet when the console is no terminal.

    Args:
        run: as prepared.
        console: where to show it.

    Returns:
        The results.
    """
    with _progress(run, console) as on_epoch:
        return run.execute(on_epoch, lambda: _say_measuring(console))


def _say_measuring(console: Console) -> None:
    if console.is_terminal:
        console.print(f"measuring: one pass of each arm, {MEMBERS} members of the one with dropout")


@contextmanager
def _progress(run: Comparison, console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[nll]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {
            name: progress.add_task(ARM_NAMES[name], total=run.epochs, start=False, nll="", completed=_done(run, name))
            for name in run.trained
        }

        def on_epoch(name: str, arm: Arm) -> None:
            best = sum(map(min, zip(*arm.validation_loss, strict=True))) / len(arm.best_epoch)
            stopped = arm.finished(run.epochs)
            progress.start_task(tasks[name])
            progress.update(
                tasks[name],
                completed=arm.epoch,
                total=arm.epoch if stopped else run.epochs,
                nll=f"validation loss {best:.4f}",
            )

        yield on_epoch


def _done(run: Comparison, name: str) -> int:
    return run.arms[name].epoch if name in run.arms else 0


def summary(results: dict[str, Any], page: Path, console: Console) -> None:
    """Print the five lines.

    Args:
        results: as in results.json.
        page: the page's path.
        console: where to print.
    """
    # A pipe has no width to keep to; a terminal gets one line each from 80 columns on.
    short = console.is_terminal and console.width < 112
    lines = []
    measured = quantities(results)
    regression = results["identity"]["task"] == "regression"
    for key, label in {**_ROWS, **({"error": "RMSE"} if regression else {})}.items():
        if key not in measured:
            continue
        q = measured[key]
        claim = Text(q.claim(results, short=short), style="bold" if results["differences"][key]["found"] else "")
        lines.append((label, " → ".join(q.means(results)), q.interval(results), claim))
    widths = [max(len(str(line[i])) for line in lines) for i in range(3)]
    for line in lines:
        label, *middle = (str(text).ljust(width) for text, width in zip(line, widths, strict=False))
        console.print(Text.assemble((label, "bold"), "  ", "  ".join(middle), "  ", line[3]), soft_wrap=True)
    console.print(Text.assemble(("page".ljust(widths[0]), "bold"), "  ", str(page)), soft_wrap=True)
