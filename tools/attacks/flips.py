"""Attack: one flipped bit in a file of each kind that puredrop writes is noticed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.outcome import Choices, Outcome
from attacks.workplace import COMPARE, EXPLAIN, PREDICT, command, unfinished_parts, unfinished_run, workplace
from puredrop._files import load_checkpoint, read_json, read_tensors
from puredrop.compare.results import load_results

__all__ = ["PROMISE", "attack"]

PROMISE = "one flipped bit in a file that puredrop wrote is noticed by `verify`, and by whatever reads the file"

_READERS: dict[str, Callable[[Path], Any] | None] = {
    "run/results.json": load_results,
    "run/weights-none.safetensors": lambda path: read_tensors(path, ""),
    "run/weights-dropout.safetensors": lambda path: read_tensors(path, ""),
    "run/report.html": None,
    "unfinished/checkpoint.safetensors": load_checkpoint,
    "page/explain.json": lambda path: read_json(path, ""),
    "page/explain.html": None,
    "whole.parquet": None,
    "out.parquet.parts/job.json": lambda path: read_json(path, ""),
    "out.parquet.parts/000000000000.parquet": None,
}
"""How each kind of file is read again; None where only `verify` does, or the command alone."""


def attack(cases: int, seed: int, first: int = 0) -> Outcome:
    """Flip one bit of one file in each case, half of them in the first 400 bytes, where headers and checksums are."""
    outcome, counts = Outcome(PROMISE), Counter[str]()
    with workplace() as folder:
        _make_files()
        joined = (folder / "whole.parquet").read_bytes()
        for number in range(first, first + cases):
            choices = Choices("flips", seed, number)
            name = choices.choice(list(_READERS))
            whole = (folder / name).read_bytes()
            bit = choices.randrange(8 * (min(400, len(whole)) if choices.chance(0.5) else len(whole)))
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            problem = _problem(folder, name)
            if not problem and name.startswith("out.parquet.parts") and choices.chance(0.1):
                problem = _goes_on(folder, name, joined)
            (folder / name).write_bytes(whole)
            outcome.cases += 1
            counts[Path(name).name] += 1
            if problem:
                outcome.failures[number] = f"bit {bit} of {name}: {problem}"
    outcome.detail = f"{len(counts)} kinds of files"
    return outcome


def _make_files() -> None:
    """Write a file of each kind."""
    unfinished_run()
    for given in (COMPARE, EXPLAIN, PREDICT):
        said = command(given)
        assert said.code == 0, said.errors
    Path("out.parquet").rename("whole.parquet")
    unfinished_parts()


def _problem(folder: Path, name: str) -> str:
    """Return how a changed file passed for a right one, or ""."""
    path, reader = folder / name, _READERS[name]
    if command(["verify", str(path)]).code != 1:
        return "verify does not notice it"
    if reader is None:
        return ""
    try:
        reader(path)
    except (ValueError, OSError) as error:
        return "" if path.name in str(error) else f"the error does not name the file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it is read as if it were right"


def _goes_on(folder: Path, name: str, joined: bytes) -> str:
    """Start the unfinished job again: it refuses, or ends with the file of an undisturbed job."""
    parts = folder / "out.parquet.parts"
    kept = shutil.copytree(parts, folder / "kept")
    said = command(PREDICT)
    out = folder / "out.parquet"
    is_right = out.read_bytes() == joined if out.exists() else said.is_refusal and parts.exists()
    out.unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    kept.rename(parts)
    return "" if is_right else f"the job ends with code {said.code} and other rows: {said.errors[:300]}"
