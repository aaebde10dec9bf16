"""`puredrop verify`: check that files still hold what was written."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from puredrop._files import checksum_state
from puredrop._text import table
from puredrop.cli.errors import fail

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "check that files which puredrop wrote still hold what was written"
DESCRIPTION = (
    "Read files that puredrop wrote, or all of a folder, and check each against the checksum that it\n"
    "carries. Nothing in a file is run. The exit code is 1 where a file is corrupt. A file from elsewhere\n"
    "has no checksum, and is corrupt only if it is cut short."
)
EXAMPLES = """\
examples:
  puredrop verify runs/digits
  puredrop verify out.parquet weights-dropout.safetensors
"""

_KINDS = {".json": "JSON", ".html": "page", ".parquet": "rows", ".safetensors": "weights"}
_NAMED_KINDS = {
    "checkpoint.safetensors": "checkpoint", "explain.json": "analysis", "job.json": "job", "results.json": "results",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the paths."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, or folders with all below them")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each file and return the exit code: 1 where one is corrupt, 2 where there is no file."""
    rows = []
    for path in arguments.paths:
        if not path.exists():
            return fail("verify", f"{path}: no such file or folder")
        try:
            found = [(str(file), _kind(file), _state(file)) for file in _files(path)]
        except OSError as error:
            return fail("verify", str(error))
        if not found:
            return fail("verify", f"{path} has no file that puredrop writes ({', '.join(_KINDS)})")
        rows += found
    print(table([("file", "kind", "state"), *rows]))
    return 1 if any(state == "corrupt" for *_, state in rows) else 0


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if file.suffix in _KINDS and file.is_file():  # no pipe, which would never end
                yield file


def _raise(error: OSError) -> None:
    raise error


def _kind(path: Path) -> str:
    return _NAMED_KINDS.get(path.name) or _KINDS.get(path.suffix, "other")


def _state(path: Path) -> str:
    with path.open("rb") as file:
        state = checksum_state(file)
    return "corrupt" if state == "no checksum" and not _is_complete(path) else state


def _is_complete(path: Path) -> bool:
    """Return whether a file without a checksum ends as its kind does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, size - 4096))
        tail = file.read()
    if path.suffix == ".parquet":
        return head[:4] == tail[-4:] == b"PAR1" and size > 8
    if path.suffix == ".html":
        return b"</html" in tail.lower()
    if path.suffix == ".safetensors":
        return _has_all_tensors(path, size, int.from_bytes(head, "little"))
    return path.suffix != ".json" or _is_json(path.read_bytes())


def _has_all_tensors(path: Path, size: int, length: int) -> bool:
    """Return whether a safetensors file is as long as its header says."""
    if size < 8 or length > size - 8:
        return False
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return bool(size == 8 + length + max([0, *ends]))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
