"""Features of a user's table as numbers: scaled, filled in and encoded by scikit-learn."""

from __future__ import annotations

import decimal
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from puredrop._text import listed

__all__ = ["MOST_CATEGORIES", "as_numbers", "as_times", "features_of"]

MOST_CATEGORIES = 20
_LARGEST = 1e30  # beyond it squares overflow in float32

_Frame = Any  # pandas ships no types


@dataclass
class _Columns:
    """The columns of a table by kind; each is read once, since pandas is slow where a table of many is changed.

    Args:
        numbers, dates, categories: name -> the column's values.
        dropped: name and reason of each other column.
        gaps: names of columns with missing values.
    """

    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    dates: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categories: dict[str, NDArray[Any]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    gaps: set[str] = field(default_factory=set)

    def add(self, name: str, column: _Frame) -> None:
        """Sort a column into its kind.

        Raises:
            ValueError: for numbers that are too large.
        """
        times, values = as_times(column), as_numbers(column)
        has_gaps = bool(column.isna().any())
        if column.isna().all():
            self.dropped.append(f"{name} (empty)")
            return
        if times is not None:
            self.dates[name] = times.to_numpy()
        elif values is not None:
            if np.nanmax(np.abs(values), initial=0) > _LARGEST:
                raise ValueError(
                    f"column {name!r} holds {np.nanmax(np.abs(values)):.3g}; expected numbers below 1e30, rescale it"
                )
            self.numbers[name] = values
            has_gaps = bool(np.isnan(values).any())  # infinite numbers have become missing ones
        else:
            texts = column.astype(str).where(column.notna(), "(missing)")
            if texts.nunique() > max(MOST_CATEGORIES, len(column) // 2):
                self.dropped.append(f"{name} (a text that hardly repeats)")
                return
            self.categories[name] = texts.to_numpy(object)
        if has_gaps:
            self.gaps.add(name)


def features_of(frame: _Frame, train: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[str]]:
    """Return all features as numbers, fitted on the training rows alone, and notes on how.

    Args:
        frame: the features.
        train: row numbers of the training.

    Raises:
        ValueError: if no feature is usable, or numbers are too large.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = _Columns()
    for name, column in frame.items():
        columns.add(name, column)
    numeric = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    encoder = OneHotEncoder(max_categories=MOST_CATEGORIES, handle_unknown="infrequent_if_exist", sparse_output=False)
    parts = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories")  # they count as infrequent, as asked for
        warnings.filterwarnings("ignore", "Skipping features without any observed values")
        for transformer, kinds in ((numeric, {**columns.numbers, **columns.dates}), (encoder, columns.categories)):
            if kinds:
                values = np.stack(list(kinds.values())).T
                parts.append(transformer.fit(values[train]).transform(values))
    if not parts:
        raise ValueError(f"no usable feature is left; dropped: {listed(columns.dropped)}")
    x = np.hstack(parts).astype(np.float32)
    return x, _notes(columns, x.shape[1])


def _notes(columns: _Columns, inputs: int) -> list[str]:
    notes = [
        f"features: {len(columns.numbers)} numeric, {len(columns.dates)} dates, {len(columns.categories)} categorical; "
        f"{inputs} inputs"
    ]
    filled_in = [name for name in (*columns.numbers, *columns.dates, *columns.categories) if name in columns.gaps]
    if filled_in:
        notes.append(f"missing values filled in {listed(filled_in)} (median and an indicator, or a category)")
    if columns.dropped:
        notes.append(f"dropped: {listed(columns.dropped)}")
    return notes


def as_numbers(column: _Frame) -> NDArray[np.float64] | None:
    """Return a column of numbers or durations (seconds) as float64, NaN where missing or infinite; else None."""
    if pd.api.types.is_timedelta64_dtype(column):
        column = column.dt.total_seconds()
    decimals = column.dtype == object and all(isinstance(value, decimal.Decimal) for value in column.dropna())
    if not decimals and (not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
        return None
    values = column.astype(np.float64).to_numpy(copy=True)
    values[np.isinf(values)] = np.nan
    return np.asarray(values, np.float64)


def as_times(column: _Frame) -> _Frame | None:
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
