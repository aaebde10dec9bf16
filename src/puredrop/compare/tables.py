"""A user's table: read, checked, its task inferred, split, and turned into numbers by scikit-learn."""

from __future__ import annotations

import csv
import decimal
import difflib
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from puredrop._text import one_line
from puredrop.compare.arrays import npz_names, read_npz
from puredrop.compare.data import VALIDATION_SHARE, Data, DataSplit
from puredrop.compare.tasks import Classification, Regression, Task

__all__ = ["TableOptions", "load_table"]

_TEST_SHARE = 5
_MOST_CATEGORIES = 20
_LEAST_ROWS = 30
_LARGEST = 1e30  # beyond it squares overflow in float32

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
    x, columns = _features(features, parts[0])
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
            return pd.read_parquet(path)
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
        raise ValueError(f"{path} has two columns named {', '.join(map(repr, repeated))}; rename one")
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
        raise ValueError(f"{path}: arrays of different lengths: {lengths}; expected one row count")
    return pd.DataFrame(columns)


def _check_column(path: Path, frame: _Frame, name: str) -> None:
    if name not in frame.columns:
        near = difflib.get_close_matches(name, map(str, frame.columns), n=3) or list(map(str, frame.columns[:6]))
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
    few = distinct <= _MOST_CATEGORIES and bool((column == column.round()).all()) if numeric else True
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
        when = _as_times(column)
        when = _as_numbers(column) if when is None else when
        if when is None:
            raise ValueError(f"--time {options.time!r} holds {column.iloc[0]!r}; expected ISO 8601 dates or numbers")
        order = everything[np.argsort(when.to_numpy(), kind="stable")]
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


def _features(frame: _Frame, train: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[str]]:
    """Return all features as numbers, fitted on the training rows alone, and notes on how."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers, categories, dates, dropped = [], [], [], []
    has_missing = frame.isna().any()
    frame = frame.copy()
    for name in frame.columns:
        column = frame[name]
        times, values = _as_times(column), _as_numbers(column)
        if column.isna().all():
            dropped.append(f"{name} (empty)")
        elif times is not None:
            frame[name] = times
            dates.append(name)
        elif values is not None:
            if values.abs().max() > _LARGEST:
                raise ValueError(
                    f"column {name!r} holds {values.abs().max():.3g}; expected numbers below 1e30, rescale it"
                )
            frame[name] = values
            numbers.append(name)
        else:
            texts = column.astype(str).where(column.notna(), "(missing)")
            if texts.nunique() > max(_MOST_CATEGORIES, len(column) // 2):
                dropped.append(f"{name} (a text that hardly repeats)")
            else:
                frame[name] = texts
                categories.append(name)
    if not (numbers or categories or dates):
        raise ValueError(f"no usable feature is left; dropped: {', '.join(dropped)}")
    numeric = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    encoder = OneHotEncoder(max_categories=_MOST_CATEGORIES, handle_unknown="infrequent_if_exist", sparse_output=False)
    transformer = ColumnTransformer([("numbers", numeric, [*numbers, *dates]), ("categories", encoder, categories)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories")  # they count as infrequent, as asked for
        warnings.filterwarnings("ignore", "Skipping features without any observed values")
        x = transformer.fit(frame.iloc[train]).transform(frame)
    # Infinite numbers have become missing ones; categories are filled already.
    filled_in = [str(name) for name in [*numbers, *dates] if frame[name].isna().any()]
    filled_in += [str(name) for name in categories if has_missing[name]]
    notes = [
        f"features: {len(numbers)} numeric, {len(dates)} dates, {len(categories)} categorical; {x.shape[1]} inputs"
    ]
    if filled_in:
        notes.append(f"missing values filled in {', '.join(filled_in)} (median and an indicator, or a category)")
    if dropped:
        notes.append(f"dropped: {', '.join(dropped)}")
    return np.asarray(x, np.float32), notes


def _as_numbers(column: _Frame) -> _Frame | None:
    """Return a column of numbers or durations (seconds) as float64, NaN where missing or infinite; else None."""
    if pd.api.types.is_timedelta64_dtype(column):
        return column.dt.total_seconds()
    decimals = column.dtype == object and all(isinstance(value, decimal.Decimal) for value in column.dropna())
    if not decimals and (not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
        return None
    return column.astype(np.float64).replace([np.inf, -np.inf], np.nan)


def _as_times(column: _Frame) -> _Frame | None:
    """Return a column of dates or ISO 8601 texts as seconds since 1970, NaN where missing; else None."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        if not pd.api.types.is_string_dtype(column.dropna()) and column.dtype != object:
            return None
        if column.isna().all():
            return None
        parsed = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
        if parsed.notna().sum() < column.notna().sum():
            return None
        column = parsed
    seconds = column.astype("int64").astype(np.float64) / 1e9
    return seconds.where(column.notna())
