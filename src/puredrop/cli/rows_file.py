"""A user's file of rows, read as a trained model takes them: nothing is scaled, nothing encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puredrop._text import listed
from puredrop.compare.arrays import npz_names, read_npz

__all__ = ["check_file", "check_rows", "chosen_numbers", "read_rows"]

Rows = NDArray[Any] | dict[str, NDArray[Any]] | list[str]


def read_rows(
    path: Path, columns: tuple[str, ...] | None, target: str | None = None, *, named: bool = False
) -> tuple[Rows, NDArray[Any] | None]:
    """Read the features and, where a target is named, the values to be predicted.

    Args:
        path: a .csv, .parquet or .npz file.
        columns: of a table: features in the model's order, all numeric ones if None, or one column of text; of an
            .npz file: the array (x), or several that the model takes by name.
        target: the column or array to predict.
        named: whether arrays go to the model by name, all of them if `columns` is None.

    Returns:
        The features, as (rows, ...), arrays by name, or texts; and the targets, (rows,), or None.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    check_file(path)
    x, y = (_of_arrays if path.suffix == ".npz" else _of_table)(path, columns, target, named)
    number = len(next(iter(x.values())) if isinstance(x, dict) else x)
    check_rows(path, number)
    if y is not None and len(y) != number:
        raise ValueError(f"DATA {str(path)!r} has {number} rows, but {len(y)} in {target!r}")
    return x, y


def check_file(path: Path) -> None:
    """Raise an error unless a path is a file of a kind that is read."""
    if not path.is_file():
        raise FileNotFoundError(f"DATA {str(path)!r} is no file")
    if path.suffix not in (".csv", ".parquet", ".npz"):
        raise ValueError(f"DATA is {str(path)!r}; expected a file named .csv, .parquet or .npz")


def check_rows(path: Path, number: int) -> None:
    """Raise ValueError if there are no rows."""
    if not number:
        raise ValueError(f"DATA {str(path)!r} has no rows")


def _of_arrays(
    path: Path, columns: tuple[str, ...] | None, target: str | None, named: bool
) -> tuple[Rows, NDArray[Any] | None]:
    present = npz_names(path)
    names = columns or (tuple(name for name in present if name != target) if named else ("x",))
    wanted, known = (*names, *([target] if target else [])), set(present)
    for name in wanted:
        if name not in known:
            option = "--target" if name == target else "--columns"
            raise ValueError(f"DATA {str(path)!r} has no array {name!r}; it has {listed(present)} (name one: {option})")
    arrays = read_npz(path, wanted)
    y = arrays.pop(target) if target else None
    return (arrays if named or len(names) > 1 else arrays[names[0]]), y


def _of_table(
    path: Path, columns: tuple[str, ...] | None, target: str | None, named: bool
) -> tuple[Rows, NDArray[Any] | None]:
    import pandas as pd

    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path, use_threads=False)
    names = (*(columns or ()), *([target] if target else []))
    _check_columns(path, table, names)
    y = table.pop(target).to_numpy() if target else None
    numbers = chosen_numbers(path, table, columns)
    if numbers is None:
        return [str(text) for text in table[names[0]]], y
    return numbers.to_numpy(np.float32), y


def _check_columns(path: Path, table: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"DATA {str(path)!r} has no column {missing[0]!r}; it has {listed(table)}")


def chosen_numbers(path: Path, table: Any, columns: tuple[str, ...] | None) -> Any | None:
    """Return the columns of a DataFrame that are the features.

    Args:
        path: the file, for messages.
        table: its rows, or some of them with the dtypes that the whole file has.
        columns: the columns that the user named, in the model's order; all of numbers if None.

    Returns:
        A DataFrame; None for one column of text.

    Raises:
        ValueError: if a named column is absent, or there are no numbers.
    """
    import pandas as pd

    _check_columns(path, table, columns or ())
    if columns and len(columns) == 1 and not pd.api.types.is_numeric_dtype(table[columns[0]]):
        return None
    numbers = table[list(columns)] if columns else table.select_dtypes("number")
    if not len(numbers.columns):
        raise ValueError(f"DATA {str(path)!r} has no column of numbers")
    return numbers
