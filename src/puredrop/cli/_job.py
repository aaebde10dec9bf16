"""`puredrop predict`: an ensemble over a file of rows, in parts that survive a kill, on one process or several."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.nn import Module

from puredrop._files import check_format, digest, replacing, write
from puredrop.cli._rows import read_rows
from puredrop.ensemble import DropoutEnsemble
from puredrop.inspection.load import made
from puredrop.inspection.weights import load_weights

__all__ = ["Job", "Request", "execute", "prepare"]

_FORMAT = 1  # of job.json and the parts beside it
_POLL = 0.2  # seconds between looks for other processes' parts


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Args:
        model: "module:factory" of the trained model.
        data: a .csv, .parquet or .npz file.
        out: the .parquet file to be written.
        num_samples, task, seed, masks: as `DropoutEnsemble` has them.
        columns: of a table: the features, in the model's order; all numeric ones if None.
        weights: a file of the model's state, .safetensors or what torch.save wrote, or None.
        part_rows: rows of a part.
    """

    model: str
    data: Path
    out: Path
    num_samples: int
    task: Literal["classification", "regression"]
    seed: int
    masks: Literal["shared", "independent"]
    columns: tuple[str, ...] | None
    weights: Path | None
    part_rows: int


class Job:
    """Rows to be predicted, in parts; each is a file of its own until all are there.

    Args:
        request: what was asked for.
        model: with its weights.
        x: (rows, ...).
    """

    def __init__(self, request: Request, model: Module, x: NDArray[Any]) -> None:
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
        """First rows of all parts."""
        return range(0, len(self.x), self.request.part_rows)

    def part(self, start: int) -> Path:
        """A part's file."""
        return self.folder / f"{start:012d}.parquet"

    def begin(self) -> int:
        """Make the folder, or find the one of the same job that was stopped; how many parts it holds.

        Raises:
            ValueError: if it is that of another job.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.folder / "job.json"
        if not state.exists():
            write(state, self._state.encode())
            return 0
        there = json.loads(state.read_text())
        check_format(state, there.get("format"), _FORMAT, f"finish that job with that version, or delete {self.folder}")
        if there != json.loads(self._state):
            raise ValueError(
                f"{self.folder} holds an unfinished job with another model, data or options; finish that, or delete it"
            )
        return sum(self.part(start).exists() for start in self.starts)

    def run(self) -> Iterator[int]:
        """Do this process's share of the parts, giving the rows done so far; then, on the first, put all together."""
        done = 0
        for start in list(self.starts)[self.rank :: self.world]:
            rows = self.x[start : start + self.request.part_rows]
            if not self.part(start).exists():
                self._write(start, rows)
            done += len(rows)
            yield done
        if self.rank == 0:
            while not all(self.part(start).exists() for start in self.starts):
                time.sleep(_POLL)  # torchrun ends this process if another one fails
            self._join()

    def _write(self, start: int, rows: NDArray[Any]) -> None:
        found = self.ensemble.predict(rows, members=self.request.num_samples, keep=0, first_row=start)
        frame = found.frame()
        frame.insert(0, "row", range(start, start + len(rows)))
        write(self.part(start), frame.to_parquet(None, index=False))

    def _join(self) -> None:
        import pyarrow.parquet as parquet

        first = parquet.ParquetFile(self.part(0))
        with replacing(self.request.out) as file, parquet.ParquetWriter(file, first.schema_arrow) as writer:
            for start in self.starts:
                writer.write_table(parquet.read_table(self.part(start), schema=first.schema_arrow))
        shutil.rmtree(self.folder)


def prepare(request: Request) -> Job:
    """Read model and data.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    if request.out.suffix != ".parquet":
        raise ValueError(f"--out is {str(request.out)!r}; expected a file named .parquet")
    if request.out.exists():
        raise ValueError(f"--out {str(request.out)!r} exists; expected a new file (delete it, or name another)")
    if request.num_samples < 1 or request.part_rows < 1:
        name = "--num-samples" if request.num_samples < 1 else "--part-rows"
        raise ValueError(f"{name} is {min(request.num_samples, request.part_rows)}; expected 1 or more")
    x, _ = read_rows(request.data, request.columns)
    if not isinstance(x, np.ndarray):
        raise ValueError(f"--columns is {','.join(request.columns or ())}; expected numbers, in one array")
    model, _ = made(request.model)
    if request.weights is not None:
        load_weights(model, request.weights, "--weights")
    return Job(request, model, x)


def execute(job: Job) -> None:
    """Run a job and say how far it is."""
    there = job.begin()
    if there and job.rank == 0:
        print(f"going on with {there} of {len(job.starts)} parts", file=sys.stderr)
    for done in job.run():
        if job.rank == 0:
            print(f"\r{done} rows", end="", file=sys.stderr, flush=True)
    if job.rank == 0:
        print(f"\r{len(job.x)} rows, {job.request.num_samples} members each: {job.request.out}", file=sys.stderr)
    for path, why in job.ensemble.skipped.items():
        if job.rank == 0:
            print(f"not part of any member: {path}: {why}", file=sys.stderr)
