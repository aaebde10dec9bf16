"""Progress of a command: bars on a terminal, with the time left; nothing where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress"]


@contextmanager
def progress(console: Console, unit: str, *, transient: bool = False) -> Iterator[Progress]:
    """Show bars until the block ends; each task needs a field `note`, shown at the end of its line.

    Args:
        console: where to show them.
        unit: what is counted, such as "epochs".
        transient: whether the bars are erased at the end.
    """
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=transient) as display:
        yield display
