"""A user's file of rows, read part by part: memory does not grow with the number of rows."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from puredrop.cli.rows_file import check_file, check_rows, chosen_numbers, read_rows
from puredrop.compare.arrays import copy_npz, npz_names

__all__ = ["StoredRows", "read_features"]

_SMALL = 1 << 22  # bytes of a file, or of an archive's array, that is read at once
_NUMBERS = 1 << 20  # of a table at once
_LEAST_ROWS = 256  # at once: pandas takes as long for a column of few rows as of many


class StoredRows:
    """Rows in a temporary file without a name, which the system deletes when the process ends; a slice is read.

    Args:
        file: their bytes, row after row.
        shape: (rows, ...).
        dtype: of one number.
        order: of the arrays that slices give; pandas gives tables in the order of columns, "F", and matrix products of
            the two orders differ in their last bit.
    """

    def __init__(
        self, file: BufferedRandom, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C"
    ) -> None:
        self._file, self.shape, self.dtype, self._order = file, shape, dtype, order
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return rows that follow each other, as an array of its own."""
        start, stop, _ = rows.indices(len(self))
        row = np.empty(self.shape[1:], self.dtype).nbytes
        data = bytearray(row * (stop - start))
        self._file.seek(row * start)
        if self._file.readinto(data) != len(data):
            raise OSError("the temporary file of the rows was cut short")
        return np.asarray(np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:]), order=self._order)


def read_features(path: Path, columns: tuple[str, ...] | None, folder: Path) -> NDArray[Any] | StoredRows:
    """Read the features of a file; those of a large one go to a temporary file part by part.

    Args:
        path: a .csv, .parquet or .npz file.
        columns: as in `read_rows`.
        folder: where the temporary file is made; it takes 4 bytes a number of a table, and an array's own bytes.

    Returns:
        (rows, ...), the same values as `read_rows` gives.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    check_file(path)
    x = _stored_array(path, columns, folder) if path.suffix == ".npz" else _stored_table(path, columns, folder)
    if x is None:
        whole, _ = read_rows(path, columns)
        if not isinstance(whole, np.ndarray):
            raise _not_numbers(columns)
        return whole
    check_rows(path, len(x))
    return x


def _not_numbers(columns: tuple[str, ...] | None) -> ValueError:
    return ValueError(f"--columns is {','.join(columns or ())}; expected numbers, in one array")


@contextlib.contextmanager
def _temporary(path: Path, folder: Path) -> Iterator[BufferedRandom]:
    """Open a temporary file, which is closed where the block raises, and say what a full disk did not take."""
    folder = next(there for there in (folder, *folder.parents) if there.is_dir())  # a new --out folder is made later
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            yield file
            file.flush()
        except OSError as error:
            if error.errno is None or error.filename == str(path):
                raise
            text = f"cannot write the rows of {path} to a temporary file in {folder}: {error.strerror}"
            raise OSError(text) from error
        stack.pop_all()


def _stored_array(path: Path, columns: tuple[str, ...] | None, folder: Path) -> StoredRows | None:
    names = columns or ("x",)
    if len(names) > 1 or names[0] not in npz_names(path):
        return None
    with _temporary(path, folder) as file:
        kind = copy_npz(path, names[0], _SMALL, file)
    if kind is None:
        file.close()
        return None
    return StoredRows(file, *kind)


def _stored_table(path: Path, columns: tuple[str, ...] | None, folder: Path) -> StoredRows | None:
    if _is_small(path):
        return None
    with _temporary(path, folder) as file:
        shape = _write_table(path, columns, file)
    return StoredRows(file, shape, np.dtype(np.float32), "F")


def _is_small(path: Path) -> bool:
    if path.suffix == ".csv":
        return path.stat().st_size <= _SMALL
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return int(file.metadata.num_rows * file.metadata.num_columns) <= _NUMBERS
    except pyarrow.ArrowException:
        return True  # reading it whole says what is wrong


def _write_table(path: Path, columns: tuple[str, ...] | None, file: BinaryIO) -> tuple[int, ...]:
    """Write a table's numbers as float32, cast from the dtypes that its columns have as a whole; return the shape.

    The dtype of a column may change in a later part, where integers turn out to have gaps or text follows numbers. Then
    the file is read a second time.
    """
    known: list[Any] = []
    while True:
        seen, rows, width = known, 0, 0
        file.seek(0)
        file.truncate()
        for table in _parts(path):
            dtypes = list(table.dtypes)
            seen = list(map(_common, seen, dtypes)) if seen else dtypes
            known = known or dtypes
            if seen != known:
                continue
            changes = {name: to for name, to, dtype in zip(table, seen, dtypes, strict=True) if to != dtype}
            numbers = chosen_numbers(path, table.astype(changes) if changes else table, columns)
            if numbers is None:
                check_rows(path, len(table))
                raise _not_numbers(columns)
            x = np.ascontiguousarray(numbers.to_numpy(np.float32))
            file.write(x.data.cast("B") if x.size else b"")
            rows, width = rows + len(x), x.shape[1]
        if seen == known:
            return rows, width
        known = seen


def _common(a: Any, b: Any) -> Any:
    """Return the dtype of a column of which one part has dtype `a` and another `b`."""
    import pandas as pd

    if a == b:
        return a
    if not (pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b)):
        return np.dtype(object)
    return pd.concat([pd.Series([0], dtype=a), pd.Series([0], dtype=b)]).dtype


def _parts(path: Path) -> Iterator[Any]:
    """Give a table's rows as DataFrames of limited size."""
    import pandas as pd

    if path.suffix == ".csv":
        with path.open("rb") as file:
            width = file.readline(1 << 26).count(b",") + 1
        with pd.read_csv(path, chunksize=_rows_at_once(width)) as tables:
            yield from tables
        return
    import pyarrow
    from pyarrow import parquet

    width = len(parquet.read_schema(path))
    buffer = max(4096, (1 << 25) // max(1, width))  # bytes of each column; without it, whole row groups are held
    with parquet.ParquetFile(path, buffer_size=buffer, pre_buffer=False) as file:  # else all it has read is kept
        for batch in file.iter_batches(_rows_at_once(width), use_threads=False):
            yield pyarrow.Table.from_batches([batch]).to_pandas()


def _rows_at_once(width: int) -> int:
    return max(_LEAST_ROWS, _NUMBERS // max(1, width))
