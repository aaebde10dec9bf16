"""Attack: the disk fails, or the process is killed, at each step that a command takes on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from attacks.outcome import Choices, Outcome
from attacks.workplace import COMPARE, EXPLAIN, PREDICT, Said, command, content, workplace
from puredrop._files import checksum_state

__all__ = ["PROMISE", "Disk", "attack"]

PROMISE = "a full disk or a kill at any step leaves no half-written file, and the next run ends with the same bytes"

_STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """The process ends here: whatever it still does on the disk is stopped, too."""


class Disk:
    """Counts what this process changes below a folder, and fails at one step.

    Python reports each change as an audit event before it happens, whichever function makes it. `os.fsync` is a step,
    too: there a file is cut to half of what was written.

    Args:
        folder: the folder that is watched.
    """

    _watching: Disk | None = None  # hooks stay for ever, so one hook serves every disk

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self.steps = 0
        self._at, self._kind, self._dead = 0, "", False
        self._sync = os.fsync

    @contextmanager
    def failing(self, at: int = 0, kind: str = "") -> Iterator[None]:
        """Watch until the block ends.

        Args:
            at: the step that fails, from 1; 0 for none.
            kind: "full", from where on nothing more can be written, but deleted; or "kill".
        """
        self.steps, self._at, self._kind, self._dead = 0, at, kind, False
        Disk._watching = self
        try:
            with mock.patch("os.fsync", self._fsync):
                yield
        finally:
            Disk._watching = None

    def on_event(self, event: str, arguments: Sequence[Any]) -> None:
        """Count an event of the audit hook."""
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(self._folder):  # noqa: PTH100
            self._step(str(path), deletes=event in ("os.remove", "os.rmdir", "shutil.rmtree"))

    def _fsync(self, descriptor: int) -> None:
        if self.steps + 1 == self._at and not self._dead:
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        self._step("", deletes=False)
        self._sync(descriptor)

    def _step(self, path: str, *, deletes: bool) -> None:
        self.steps += 1
        self._dead = self._dead or self.steps == self._at
        if self._dead and self._kind == "kill":
            raise Killed
        if self._dead and not deletes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path or None)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _STEPS and Disk._watching is not None:
        Disk._watching.on_event(event, arguments)


sys.addaudithook(_hook)

_COMMANDS = {"compare": COMPARE, "predict": PREDICT, "explain": EXPLAIN}


def attack(cases: int, seed: int, first: int = 0) -> Outcome:
    """Let each command fail at a step in one of two ways; the steps are taken in turn, in a random order."""
    outcome, counts = Outcome(PROMISE), Counter[str]()
    with workplace() as folder:
        given = {path.name for path in folder.iterdir()} | {"__pycache__"}
        expected, points = {}, []
        for name, line in _COMMANDS.items():
            disk = Disk(folder)
            with disk.failing():
                said = command(line)
            assert said.code == 0, said.errors
            expected[name] = _made(folder, given)
            points += [(name, kind, at) for kind in ("full", "kill") for at in range(1, disk.steps + 1)]
            _clear(folder, given)
        Choices("faults", seed, 0).shuffle(points)
        for number in range(first, first + cases):
            name, kind, at = points[number % len(points)]
            problem = _fail(folder, given, _COMMANDS[name], kind, at, expected[name])
            _clear(folder, given)
            outcome.cases += 1
            counts[kind] += 1
            if problem:
                outcome.failures[number] = f"{name}, {kind} at step {at}: {problem}"
    outcome.detail = f"{len(points)} points; {counts['full']} full disks, {counts['kill']} kills"
    return outcome


def _fail(folder: Path, given: set[str], line: Sequence[str], kind: str, at: int, expected: dict[str, Any]) -> str:
    """Run a command that fails at a step, then run it again; return what is wrong, or ""."""
    problem = ""
    with Disk(folder).failing(at, kind):
        try:
            said = command(line)
        except Killed:
            said = Said(0, "")
    if kind == "full" and not (said.code == 0 or said.is_refusal):
        problem = f"code {said.code}: {said.errors[-300:]}"
    for path in _files(folder, given):
        if path.name.endswith(".tmp") and kind == "full":
            problem = problem or f"{path.name} is left over"
        if path.suffix in (".json", ".parquet", ".safetensors", ".html"):
            with path.open("rb") as file:
                if checksum_state(file) != "right":
                    problem = problem or f"{path.name} is half-written"
    resume = ["--resume"] if Path("run/checkpoint.safetensors").exists() else []
    said = command([*line, *resume])
    if said.code and "'out.parquet' exists" in said.errors:  # `predict` never writes a finished file again
        shutil.rmtree("out.parquet.parts", ignore_errors=True)
    elif said.code:
        return problem or f"the next run ends with code {said.code}: {said.errors[-300:]}"
    found = _made(folder, given)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return problem or (f"after the next run these differ: {', '.join(differing)}" if differing else "")


def _files(folder: Path, given: set[str]) -> list[Path]:
    return [path for top in folder.iterdir() if top.name not in given for path in (top, *top.rglob("*"))
            if path.is_file()]  # fmt: skip


def _made(folder: Path, given: set[str]) -> dict[str, Any]:
    """Return what a command has made, by name."""
    return {name: value for name, value in content(folder).items() if Path(name).parts[0] not in given}


def _clear(folder: Path, given: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in given:
            remove: Callable[[Path], None] = shutil.rmtree if path.is_dir() else Path.unlink
            remove(path)
