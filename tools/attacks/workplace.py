"""A folder in which the command runs, with a model, data, and files of each kind that the command writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from puredrop.cli import main
from puredrop.compare.run import Comparison
from puredrop.explanation.analysis import Explanation

__all__ = [
    "COMPARE",
    "EXPLAIN",
    "PREDICT",
    "UNFINISHED",
    "Said",
    "command",
    "content",
    "stopped",
    "unfinished_parts",
    "unfinished_run",
    "workplace",
]

_MODULE = "attacked_nets"
_NETS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
"""
COMPARE = (
    "compare", "digits", "--rows", "60", "--hidden", "4", "--rates", "0.5", "--seeds", "2", "--epochs", "2",
    "--out", "run",
)  # fmt: skip
UNFINISHED = tuple(word if word != "run" else "unfinished" for word in COMPARE)
PREDICT = (
    "predict", f"{_MODULE}:net", "rows.csv", "--columns", "a,b,c,d", "--members", "4", "--part-rows", "20",
    "--out", "out.parquet",
)  # fmt: skip
EXPLAIN = (
    "explain", f"{_MODULE}:net", "rows.csv", "--columns", "a,b,c,d", "--target", "label", "--members", "16",
    "--weights", "weights.safetensors", "--out", "page",
)  # fmt: skip

_CHANGING = re.compile(rb"blake2b-128 [0-9a-f]{32}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
"""Of a page: its checksum and its time."""


@dataclass
class Said:
    """Result of a command.

    Args:
        code: the exit code; -1 where it raised an exception.
        errors: what it printed to stderr, or the exception and where it was raised.
    """

    code: int
    errors: str

    @property
    def is_refusal(self) -> bool:
        """Return whether the command refused its input with exit code 2, in one line that says why.

        Lines before it may say what was done until then, such as "going on with 1 of 3 parts".
        """
        *notes, reason = self.errors.strip().splitlines() or [""]
        is_clean = not any(": error: " in note or "Warning" in note or "Traceback" in note for note in notes)
        return self.code == 2 and ": error: " in reason and is_clean


def command(line: Sequence[str]) -> Said:
    """Run the command in this process."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = main(list(line))
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return Said(-1, f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}")
    return Said(code, errors.getvalue())


@contextmanager
def workplace() -> Iterator[Path]:
    """Work in a new folder until the block ends; no network is explained and no page drawn, which takes seconds."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.callback(sys.modules.pop, _MODULE, None)
        stack.callback(os.chdir, before)
        os.chdir(name)
        Path(f"{_MODULE}.py").write_text(_NETS)
        _write_rows()
        nothing = Explanation("", (), (), {"model": "left out"})
        for target in ("puredrop.compare.run.analyse", "puredrop.cli.explain_job.analyse"):
            stack.enter_context(mock.patch(target, return_value=nothing))
        page = "<!doctype html>\n<html></html>"
        stack.enter_context(mock.patch("puredrop.compare.page.render", return_value=page))
        stack.enter_context(mock.patch("puredrop.compare.run._SECONDS_BETWEEN_CHECKPOINTS", 0.0))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        yield Path(name)


def _write_rows() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(50, 4)).astype(np.float32).round(3), columns=list("abcd"))
    table["label"], table["name"] = random.integers(0, 3, 50), [f"row {i}" for i in range(50)]
    table.to_csv("rows.csv", index=False)
    table.to_parquet("rows.parquet", index=False)
    np.savez("rows.npz", x=table[list("abcd")].to_numpy(), y=table["label"].to_numpy())
    torch.manual_seed(1)
    layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
    state = torch.nn.Sequential(*layers).state_dict()
    safetensors.torch.save_file(state, "weights.safetensors")
    torch.save(state, "weights.pt")


@contextmanager
def stopped() -> Iterator[None]:
    """Stop `compare` and `explain`, with exit code 130, where they have read their input and are about to work."""

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with mock.patch.object(Comparison, "execute", stop), mock.patch("puredrop.cli.explain_job.execute", stop):
        yield


def unfinished_run() -> None:
    """Leave a run of `compare` that was stopped before its page, with its checkpoint."""
    with mock.patch("puredrop.compare.page.render", side_effect=KeyboardInterrupt):
        command(UNFINISHED)


def unfinished_parts() -> None:
    """Leave an unfinished job of `predict`: its file and the first of its parts."""
    with mock.patch("puredrop.cli.predict_job.PredictJob._join", side_effect=KeyboardInterrupt):
        command(PREDICT)
    for part in sorted(Path("out.parquet.parts").glob("0*.parquet"))[1:]:
        part.unlink()


def content(folder: Path) -> dict[str, Any]:
    """Return what files hold, by name, without times and checksums; two runs of one command must agree."""
    return {str(path.relative_to(folder)): _value(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _value(path: Path) -> Any:
    if path.suffix == ".html":
        return _CHANGING.sub(b"", path.read_bytes())
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_bytes())
    for name in ("checksum", "created", "environment"):
        record.pop(name, None)
    for arm in record.get("arms", {}).values():
        arm.pop("seconds_per_epoch")
    return record
