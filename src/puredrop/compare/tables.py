"""A user's table: read, checked, its task inferred, split, and turned into numbers by scikit-learn."""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from puredrop._text import listed, one_line
from puredrop.compare.arrays import npz_names, read_npz
from puredrop.compare.data import VALIDATION_SHARE, Data, DataSplit
from puredrop.compare.features import MOST_CATEGORIES, as_numbers, as_times, features_of
from puredrop.compare.tasks import Classification, Regression, Task

__all__ = ["TableOptions", "load_table"]

_TEST_SHARE = 5
_LEAST_ROWS = 30
_COMPARED = 10_000  # names that are compared with a misspelt one, which takes a second

_Frame = Any  # pandas ships no types


@dataclass(frozen=True)
class TableOptions:
    """Options of a table; the fields are the command's options.

    Args:
        target: the column to predict.
        task: "classification" or "regression"; None to infer it.
        group: a column whose values are never split between training, validation and test.
        time: a column by which the rows are ordered: the last rows are the test.
        split_seed: seed of the random split.
        rows: number of rows to use of those that are not test rows; None for all.
    """

    target: str
    task: str | None = None
    group: str | None = None
    time: str | None = None
    split_seed: int = 0
    rows: int | None = None


def load_table(path: Path, options: TableOptions) -> Data:
    """Read a table, split it, and turn it into numbers.

    Args:
        path: a .csv, .parquet or .npz file.
        options: target, task and split.

    Returns:
        The data; its notes say what was inferred and done.

    Raises:
        ValueError, OSError: with one line that names the column or file and what was expected.
    """
    frame = _read(path)
    broken = [name for name in frame.columns if "\0" in str(name)]
    if broken:  # pandas would not find it again
        raise ValueError(f"{path} has a column named {broken[0][:40]!r}, with a NUL character; rename it")
    if len(frame) < _LEAST_ROWS:
        raise ValueError(f"{path} holds {len(frame)} rows; expected at least {_LEAST_ROWS}")
    named = [name for name in (options.target, options.group, options.time) if name is not None]
    for name in named:
        _check_column(path, frame, name)
    if len(set(named)) < len(named):
        raise ValueError(f"--target, --group and --time name {', '.join(named)}; expected different columns")
    task, y, note = _target(frame[options.target], options)
    notes = [note]
    parts = _split_rows(frame, y, task, options)
    features = frame.drop(columns=named)
    if features.shape[1] == 0:
        raise ValueError(f"{path} has no column except {', '.join(named)}; expected at least one feature")
    x, columns = features_of(features, parts[0])
    notes += columns
    train, validation, test = (DataSplit(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in parts)
    return Data(path.stem, task, train, validation, test, tuple(notes))


def _read(path: Path) -> _Frame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".csv":
            return _read_csv(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path, use_threads=False)  # threads take 74 kB a column, one 12
        return _read_npz(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except Exception as error:  # pandas, pyarrow and csv have many kinds
        text = one_line(error, (ValueError, OSError))
        raise ValueError(text if text.startswith(str(path)) else f"{path}: cannot be read ({text})") from error


def _read_csv(path: Path) -> _Frame:
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if not header:
        raise ValueError(f"{path} is empty; expected a line of column names and rows below")
    if repeated:  # pandas would rename the second one without a word
        raise ValueError(f"{path} has two columns named {listed(map(repr, repeated))}; rename one")
    return pd.read_csv(path, encoding="utf-8")


def _read_npz(path: Path) -> _Frame:
    columns: dict[str, Any] = {}
    for name, array in read_npz(path, npz_names(path)).items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}{i}": column for i, column in enumerate(array.T)}
        else:
            raise ValueError(f"{path}: array {name!r} has shape {array.shape}; expected (rows,) or (rows, columns)")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = listed(f"{name!r} has {length}" for name, length in lengths.items())
        raise ValueError(f"{path}: arrays of different lengths: {shown}; expected one row count")
    return pd.DataFrame(columns)


def _check_column(path: Path, frame: _Frame, name: str) -> None:
    if name not in frame.columns:
        names = list(map(str, frame.columns[:_COMPARED]))
        near = difflib.get_close_matches(name, names, n=3) or names[:6]
        raise ValueError(f"{path} has no column {name!r}; did you mean {' or '.join(map(repr, near))}?")


def _target(column: _Frame, options: TableOptions) -> tuple[Task, NDArray[Any], str]:
    """Return the task, the target as numbers, and a note on both."""
    name = options.target
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        rows = ", ".join(map(str, missing[:5] + 1)) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"target {name!r} has {len(missing)} missing values (data rows {rows}); drop or fill them")
    distinct = column.nunique()
    if distinct < 2:
        raise ValueError(f"target {name!r} is always {column.iloc[0]!r}; expected at least two values")
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    few = distinct <= MOST_CATEGORIES and bool((column == column.round()).all()) if numeric else True
    kind = options.task or ("classification" if few else "regression")
    chosen = "as told" if options.task else "inferred; --task says otherwise"
    if kind == "regression":
        if not numeric:
            raise ValueError(f"target {name!r} holds {column.iloc[0]!r}; expected numbers for regression")
        values = column.to_numpy(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"target {name!r} holds infinite values; expected finite numbers")
        task = Regression(float(values.mean()), float(values.std()))
        y = ((values - task.mean) / task.scale).astype(np.float32)
        return task, y, f"target {name!r}: regression ({chosen}), {distinct} distinct values"
    labels, y = np.unique(column.astype(str).to_numpy() if not numeric else column.to_numpy(), return_inverse=True)
    counts = np.bincount(y)
    if counts.min() < 2:
        raise ValueError(
            f"target {name!r}: class {labels[counts.argmin()]!r} has one row; expected at least two "
            "(drop it, join classes, or say --task regression)"
        )
    return Classification(len(labels)), y.astype(np.int64), f"target {name!r}: {len(labels)} classes ({chosen})"


def _split_rows(frame: _Frame, y: NDArray[Any], task: Task, options: TableOptions) -> list[NDArray[np.int64]]:
    """Return the row numbers of training, validation and test."""
    everything = np.arange(len(frame))
    if options.time is not None:
        column = frame[options.time]
        if column.isna().any():
            raise ValueError(f"--time {options.time!r} has missing values; expected one time per row")
        when = as_times(column)
        when = as_numbers(column) if when is None else when.to_numpy()
        if when is None:
            raise ValueError(f"--time {options.time!r} holds {column.iloc[0]!r}; expected ISO 8601 dates or numbers")
        order = everything[np.argsort(when, kind="stable")]
        remaining, test = order[: -(len(order) // _TEST_SHARE)], order[-(len(order) // _TEST_SHARE) :]
        remaining = remaining if options.rows is None else remaining[-_checked_rows(options.rows, len(remaining)) :]
        cut = len(remaining) // VALIDATION_SHARE
        return [remaining[:-cut], remaining[-cut:], test]
    groups = None if options.group is None else frame[options.group].astype(str).to_numpy()
    remaining, test = _divide(everything, y, groups, task, 1 / _TEST_SHARE, options.split_seed)
    if options.rows is not None:
        remaining = np.random.default_rng(options.split_seed).permutation(remaining)
        remaining = remaining[: _checked_rows(options.rows, len(remaining))]
    train, validation = _divide(remaining, y, groups, task, 1 / VALIDATION_SHARE, options.split_seed)
    if isinstance(task, Classification) and len(np.unique(y[train])) < task.outputs:
        raise ValueError("a class has no row left to train on; use more rows, another --split-seed, or join classes")
    return [train, validation, test]


def _checked_rows(rows: int, available: int) -> int:
    if not _LEAST_ROWS <= rows <= available:
        raise ValueError(
            f"--rows is {rows}; expected {_LEAST_ROWS} to {available}, the rows that are not kept for the test"
        )
    return rows


def _divide(
    rows: NDArray[np.int64], y: NDArray[Any], groups: NDArray[Any] | None, task: Task, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    if groups is not None:
        if len(np.unique(groups[rows])) < 3:
            raise ValueError("--group has fewer than three values; expected enough to split them")
        splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
        first, second = next(splitter.split(rows, groups=groups[rows]))
        return rows[first], rows[second]
    stratify = None
    if isinstance(task, Classification) and np.bincount(y[rows], minlength=task.outputs).min() >= 2:
        enough = len(rows) * share >= task.outputs
        stratify = y[rows] if enough else None
    first, second = train_test_split(rows, test_size=share, random_state=seed, stratify=stratify)
    return first, second
