"""Files and folders that the command is given: what is checked, and what cannot be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["Targets", "find_targets"]

_SKIPPED = {"__pycache__", "node_modules", "site-packages"}


@dataclass(frozen=True)
class Targets:
    """Files to check.

    Args:
        files: the files that are named, and those below the folders that are.
        folders: the folders that are named.
        problems: one line for each path that cannot be checked.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    problems: tuple[str, ...]

    def covers(self, file: Path) -> bool:
        """Return whether a file is among the files, or would be if it existed."""
        path = file.resolve()
        return path in self._resolved or any(path.is_relative_to(Path(folder).resolve()) for folder in self.folders)

    @cached_property
    def _resolved(self) -> frozenset[Path]:
        return frozenset(Path(file).resolve() for file in self.files)


def find_targets(paths: Iterable[str]) -> Targets:
    """Return the files to check: those that are named, and all .py and .ipynb files below folders that are.

    Hidden folders, virtual environments and installed packages below a folder are left out, and links to folders are
    not followed. What cannot be checked hides nothing else.
    """
    files: dict[str, None] = {}
    folders: list[str] = []
    problems: list[str] = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116, Path("") is the current folder
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"{path}: no such file or folder (a model is named module:factory)")
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {_reason(error)}")
        else:
            if stat.S_ISDIR(mode):
                folders.append(path)
                files |= dict.fromkeys(_below(path, problems))
            elif stat.S_ISREG(mode):
                files[str(Path(path))] = None
            else:
                problems.append(f"{path}: neither a file nor a folder, and not read")
    return Targets(tuple(files), tuple(folders), tuple(problems))


def _below(folder: str, problems: list[str]) -> list[str]:
    """Return the files below a folder; add a line for each part that cannot be read."""
    refused: list[OSError] = []
    files, before = [], len(problems)
    for root, folders, names in os.walk(str(Path(folder)), onerror=refused.append):
        folders[:] = sorted(name for name in folders if not _is_skipped(Path(root, name)))
        for name in sorted(names):
            if name.endswith((".py", ".ipynb")):
                path = str(Path(root, name))
                if _is_special(path):
                    problems.append(f"{path}: neither a file nor a folder, and not read")
                else:
                    files.append(path)
    problems += [f"{error.filename}: {_reason(error)}" for error in refused]
    if not files and len(problems) == before:
        problems.append(f"{folder}: nothing to check: the folder holds no .py or .ipynb file")
    return files


def _is_skipped(folder: Path) -> bool:
    """Return whether a folder holds code of others."""
    try:
        is_environment = (folder / "pyvenv.cfg").exists()
    except OSError:
        is_environment = False  # a folder without permission; the walk says so
    return folder.name.startswith(".") or folder.name in _SKIPPED or is_environment


def _is_special(path: str) -> bool:
    """Return whether a path is a device, a pipe or a socket, which reading could wait for without end."""
    try:
        return not stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return False  # reading it says why not


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
