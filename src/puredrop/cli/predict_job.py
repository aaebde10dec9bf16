"""The work of `puredrop predict`: parts of a file that survive a kill, on one process or several."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import Module

from puredrop._files import (
    BLANK_CHECKSUM,
    check_format,
    digest,
    read,
    read_json,
    remove_interrupted,
    replacing,
    seal,
    seal_file,
    write,
    write_json,
)
from puredrop._folders import check_output_folder, check_unlocked, output_folder
from puredrop.cli.progress import progress
from puredrop.cli.requests import PredictRequest
from puredrop.cli.stored_rows import StoredRows, read_features
from puredrop.ensemble import DropoutEnsemble
from puredrop.inspection.load import make_model
from puredrop.inspection.weights import load_weights

__all__ = ["PredictJob", "execute", "prepare"]

_FORMAT = 1  # of job.json and the parts in its folder
_PREDICTIONS_FORMAT = 1  # of the file that is written at the end
_POLL = 0.2  # seconds between checks for other processes' parts
_OUTSIDE = (OSError, MemoryError)  # the machine's reasons: the same job may go on once they are mended
_UNMARKED = {"failed": False}


class PredictJob:
    """Rows to be predicted, in parts; each part is a file of its own until all parts are there.

    Args:
        request: the command's options.
        model: the trained model.
        x: (rows, ...).
    """

    def __init__(self, request: PredictRequest, model: Module, x: NDArray[Any] | StoredRows) -> None:
        self.request = request
        self.x = x
        self.ensemble = DropoutEnsemble(model, request.task, seed=request.seed, masks=request.masks)
        self.rank, self.world = _rank(), int(os.environ.get("WORLD_SIZE", 1))
        self.folder = _parts_folder(request)
        state = {
            "format": _FORMAT,
            "request": {**asdict(request), "out": "", "data": "", "weights": ""},
            "data": self._data_digest(),
            "weights": digest(model.state_dict()),
        }
        self._state: dict[str, Any] = json.loads(json.dumps(state, default=str))

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
        return sum(min(self.request.part_rows, len(self.x) - start) for start in self.own_starts)

    def _data_digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for start in self.starts:
            state.update(np.ascontiguousarray(self.x[start : start + self.request.part_rows]).data)
        return state.hexdigest()

    @property
    def state_file(self) -> Path:
        """Return the file that names the job to which the parts belong."""
        return self.folder / "job.json"

    def part(self, start: int) -> Path:
        """Return the file of the part that begins at a row."""
        return self.folder / f"{start:012d}.parquet"

    @contextmanager
    def opened(self) -> Iterator[bool]:
        """Hold the folder of parts until the block ends, and give whether there is anything to do.

        A block that raises leaves no folder if there is no part; where there are parts, a job whose model or data
        failed is marked, so that a corrected command may take its place.

        Raises:
            ValueError: if the folder belongs to another job, or to another version.
            BlockingIOError: if another run holds it.
        """
        with contextlib.ExitStack() as stack:
            if self.rank == 0:
                stack.enter_context(output_folder(self.folder, str(self.request.out)))
            try:
                yield self._begin() if self.rank == 0 else self._wait()
            except BaseException as error:
                if self._is_own():
                    self._abandon(has_failed=isinstance(error, Exception) and not isinstance(error, _OUTSIDE))
                raise
        if self.rank == 0:
            with contextlib.suppress(OSError):  # the user may have put a file there
                self.folder.rmdir()

    def _begin(self) -> bool:
        """Make the job's file, or go on with the same job."""
        if self.state_file.exists() and not self._is_own():
            self._replace()
        if self.request.out.exists():
            if not self.state_file.exists():
                raise _exists(self.request)
            self._clean()  # the run was killed after the last step but this
            return False
        write_json(self.state_file, self._state)
        parts = sum(self.part(start).exists() for start in self.starts)
        if parts:
            print(f"going on with {parts} of {len(self.starts)} parts", file=sys.stderr)
        return True

    def _wait(self) -> bool:
        """Wait until the first process has made the job's file, or has finished without this one."""
        while not self._is_own():  # torchrun ends this process if another one fails
            if self.request.out.exists():
                return False
            time.sleep(_POLL)
        return True

    def _stored(self) -> dict[str, Any]:
        return read_json(self.state_file, f"delete {self.folder} to start again")

    def _is_own(self) -> bool:
        """Return whether the folder holds this job."""
        return self.state_file.exists() and {**self._stored(), **_UNMARKED} == {**self._state, **_UNMARKED}

    def _replace(self) -> None:
        """Delete another job's parts if they are of no use: there are none, or its model or data failed."""
        stored = self._stored()
        fix = f"finish that job with that version, or delete {self.folder}"
        check_format(self.state_file, stored.get("format"), _FORMAT, fix)
        parts = list(self.folder.glob(f"{'[0-9]' * 12}.parquet"))
        is_whole = self._state.keys() <= stored.keys()
        if not is_whole or (parts and not stored.get("failed")):
            raise ValueError(
                f"{self.folder} holds an unfinished job with another model, data or options; finish that, or delete it"
            )
        for path in (*parts, self.state_file):
            path.unlink()

    def _abandon(self, has_failed: bool) -> None:
        if not any(self.part(start).exists() for start in self.starts):
            remove_interrupted(*map(self.part, self.starts), self.state_file)
            self.state_file.unlink()
        elif has_failed:
            with contextlib.suppress(OSError):  # the error that led here is the one to report
                write_json(self.state_file, {**self._state, "failed": True})

    def run(self) -> Iterator[int]:
        """Predict this process's parts, giving the rows predicted so far; then the first process joins all parts."""
        count = 0
        for start in self.own_starts:
            if self._read(start) is None:
                self._write(start)
            count += min(self.request.part_rows, len(self.x) - start)
            yield count
        if self.rank == 0:
            while not all(self.part(start).exists() for start in self.starts):
                time.sleep(_POLL)  # torchrun ends this process if another one fails
            self._join()
            self._clean()

    def _read(self, start: int) -> Any | None:
        """Return a part's table; None where the part is absent or not what was written."""
        import pyarrow
        from pyarrow import parquet

        path = self.part(start)
        if not path.exists():
            return None
        try:
            table = parquet.read_table(pyarrow.BufferReader(read(path, "")))
        except (ValueError, pyarrow.ArrowException):
            table = None
        if table is None or b"checksum" not in (table.schema.metadata or {}):
            print(f"{path} is not what was written; its rows are predicted again", file=sys.stderr)
            return None
        return table

    def _write(self, start: int) -> None:
        import pyarrow
        from pyarrow import parquet

        rows = self.x[start : start + self.request.part_rows]
        frame = self.ensemble.predict(rows, members=self.request.members, keep=0, first_row=start).frame()
        frame.insert(0, "row", range(start, start + len(rows)))
        buffer = io.BytesIO()
        parquet.write_table(_unsealed(pyarrow.Table.from_pandas(frame, preserve_index=False)), buffer)
        write(self.part(start), seal(buffer.getvalue()))

    def _join(self) -> None:
        from pyarrow import parquet

        number = {b"puredrop.format": str(_PREDICTIONS_FORMAT).encode()}
        schema = _unsealed(self._table(0), number).schema
        with replacing(self.request.out) as file:
            with parquet.ParquetWriter(file, schema) as writer:
                for start in self.starts:
                    writer.write_table(self._table(start).cast(schema))
            seal_file(file)

    def _table(self, start: int) -> Any:
        """Return a part's table, predicted again if the file is not what was written."""
        table = self._read(start)
        if table is None:
            self._write(start)
            table = self._read(start)
        return table

    def _clean(self) -> None:
        """Delete the parts, what killed runs were writing, and the job's file last."""
        parts = list(map(self.part, self.starts))
        remove_interrupted(*parts, self.state_file, self.request.out)
        for path in (*parts, self.state_file):
            path.unlink(missing_ok=True)


def _unsealed(table: Any, metadata: Mapping[bytes, bytes] = MappingProxyType({})) -> Any:
    """Return a table with metadata, whose file is to be sealed."""
    blank = {b"checksum": BLANK_CHECKSUM.encode()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata, **blank})


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _parts_folder(request: PredictRequest) -> Path:
    return request.out.with_name(f"{request.out.name}.parts")


def _exists(request: PredictRequest) -> ValueError:
    return ValueError(f"--out {str(request.out)!r} exists; expected a new file (delete it, or name another)")


def prepare(request: PredictRequest) -> PredictJob:
    """Read model and data.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    if request.out.suffix != ".parquet":
        raise ValueError(f"--out is {str(request.out)!r}; expected a file named .parquet")
    _check_output(request)
    if request.members < 1 or request.part_rows < 1:
        name = "--members" if request.members < 1 else "--part-rows"
        raise ValueError(f"{name} is {min(request.members, request.part_rows)}; expected 1 or more")
    x = read_features(request.data, request.columns, request.out.parent)
    model, _ = make_model(request.model)
    if request.weights is not None:
        load_weights(model, request.weights, "--weights")
    return PredictJob(request, model, x)


def _check_output(request: PredictRequest) -> None:
    folder = _parts_folder(request)
    if request.out.is_symlink() or request.out.is_dir():
        raise _exists(request)
    # A run that was killed between its last two steps has both, and goes on; a process after the first may be late.
    if request.out.exists() and not folder.exists() and _rank() == 0:
        raise _exists(request)
    check_output_folder(folder)
    if _rank() == 0:
        check_unlocked(folder, str(request.out))


def execute(job: PredictJob) -> None:
    """Run a job, show its progress, and say what was written."""
    with job.opened() as has_work:
        if job.rank:
            for _ in job.run() if has_work else ():
                pass
            return
        with progress(Console(stderr=True), "rows", transient=True) as display:
            bar = display.add_task("predict", total=job.own_rows, note="")
            for rows in job.run() if has_work else ():
                display.update(bar, completed=rows)
    print(f"{len(job.x)} rows, {job.request.members} members each: {job.request.out}", file=sys.stderr)
    for path, reason in job.ensemble.skipped.items():
        print(f"not part of any member: {path}: {reason}", file=sys.stderr)
