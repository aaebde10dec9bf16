"""The work of `puredrop predict`: parts of a file that survive a kill, on one process or several."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import Module

from puredrop._files import check_format, digest, replacing, write
from puredrop.cli.progress import progress
from puredrop.cli.requests import PredictRequest
from puredrop.cli.rows_file import read_rows
from puredrop.ensemble import DropoutEnsemble
from puredrop.inspection.load import make_model
from puredrop.inspection.weights import load_weights

__all__ = ["PredictJob", "execute", "prepare"]

_FORMAT = 1  # of job.json and the parts in its folder
_PREDICTIONS_FORMAT = 1  # of the file that is written at the end
_POLL = 0.2  # seconds between checks for other processes' parts


class PredictJob:
    """Rows to be predicted, in parts; each part is a file of its own until all parts are there.

    Args:
        request: the command's options.
        model: the trained model.
        x: (rows, ...).
    """

    def __init__(self, request: PredictRequest, model: Module, x: NDArray[Any]) -> None:
        self.request = request
        self.x = x
        self.ensemble = DropoutEnsemble(model, request.task, seed=request.seed, masks=request.masks)
        self.rank, self.world = (int(os.environ.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.folder = request.out.with_name(f"{request.out.name}.parts")
        self._state = json.dumps(
            {
                "format": _FORMAT,
                "request": {**asdict(request), "out": "", "data": "", "weights": ""},
                "data": hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=16).hexdigest(),
                "weights": digest(model.state_dict()),
            },
            default=str,
            sort_keys=True,
        )

    @property
    def starts(self) -> range:
        """Return the number of the first row of each part."""
        return range(0, len(self.x), self.request.part_rows)

    @property
    def own_starts(self) -> range:
        """Return the first rows of the parts that this process predicts."""
        return self.starts[self.rank :: self.world]

    @property
    def own_rows(self) -> int:
        """Return the number of rows that this process predicts."""
        return sum(len(self.x[start : start + self.request.part_rows]) for start in self.own_starts)

    def part(self, start: int) -> Path:
        """Return the file of the part that begins at a row."""
        return self.folder / f"{start:012d}.parquet"

    def begin(self) -> int:
        """Make the folder, or go on with that of the same job; return the number of parts that it holds.

        Raises:
            ValueError: if the folder belongs to another job, or to another version.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.folder / "job.json"
        if not state.exists():
            write(state, self._state.encode())
            return 0
        stored = json.loads(state.read_text())
        fix = f"finish that job with that version, or delete {self.folder}"
        check_format(state, stored.get("format"), _FORMAT, fix)
        if stored != json.loads(self._state):
            raise ValueError(
                f"{self.folder} holds an unfinished job with another model, data or options; finish that, or delete it"
            )
        return sum(self.part(start).exists() for start in self.starts)

    def run(self) -> Iterator[int]:
        """Predict this process's parts, giving the rows predicted so far; then the first process joins all parts."""
        count = 0
        for start in self.own_starts:
            rows = self.x[start : start + self.request.part_rows]
            if not self.part(start).exists():
                self._write(start, rows)
            count += len(rows)
            yield count
        if self.rank == 0:
            while not all(self.part(start).exists() for start in self.starts):
                time.sleep(_POLL)  # torchrun ends this process if another one fails
            self._join()

    def _write(self, start: int, rows: NDArray[Any]) -> None:
        frame = self.ensemble.predict(rows, members=self.request.members, keep=0, first_row=start).frame()
        frame.insert(0, "row", range(start, start + len(rows)))
        write(self.part(start), frame.to_parquet(None, index=False))

    def _join(self) -> None:
        import pyarrow.parquet as parquet

        schema = parquet.ParquetFile(self.part(0)).schema_arrow
        number = {"puredrop.format": str(_PREDICTIONS_FORMAT)}
        named = schema.with_metadata({**(schema.metadata or {}), **number})
        with replacing(self.request.out) as file, parquet.ParquetWriter(file, named) as writer:
            for start in self.starts:
                writer.write_table(parquet.read_table(self.part(start), schema=schema))
        shutil.rmtree(self.folder)


def prepare(request: PredictRequest) -> PredictJob:
    """Read model and data.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    if request.out.suffix != ".parquet":
        raise ValueError(f"--out is {str(request.out)!r}; expected a file named .parquet")
    if request.out.exists():
        raise ValueError(f"--out {str(request.out)!r} exists; expected a new file (delete it, or name another)")
    if request.members < 1 or request.part_rows < 1:
        name = "--members" if request.members < 1 else "--part-rows"
        raise ValueError(f"{name} is {min(request.members, request.part_rows)}; expected 1 or more")
    x, _ = read_rows(request.data, request.columns)
    if not isinstance(x, np.ndarray):
        raise ValueError(f"--columns is {','.join(request.columns or ())}; expected numbers, in one array")
    model, _ = make_model(request.model)
    if request.weights is not None:
        load_weights(model, request.weights, "--weights")
    return PredictJob(request, model, x)


def execute(job: PredictJob) -> None:
    """Run a job, show its progress, and say what was written."""
    parts = job.begin()
    if job.rank:
        for _ in job.run():
            pass
        return
    if parts:
        print(f"going on with {parts} of {len(job.starts)} parts", file=sys.stderr)
    with progress(Console(stderr=True), "rows", transient=True) as display:
        bar = display.add_task("predict", total=job.own_rows, note="")
        for rows in job.run():
            display.update(bar, completed=rows)
    print(f"{len(job.x)} rows, {job.request.members} members each: {job.request.out}", file=sys.stderr)
    for path, reason in job.ensemble.skipped.items():
        print(f"not part of any member: {path}: {reason}", file=sys.stderr)
