"""Tables of very many columns: one read of each, and errors that name a few of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from puredrop.compare import features
from puredrop.compare.arrays import npz_names, read_npz
from puredrop.compare.tables import TableOptions, load_table


def _wide(columns: int) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(40, columns))
    return pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)])


def test_a_table_is_not_changed_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a table of n columns takes n steps for each column that is set")

    monkeypatch.setattr(pd.DataFrame, "__setitem__", refuse)
    monkeypatch.setattr(pd.Series, "replace", refuse)
    x, notes = features.features_of(_wide(50), np.arange(30))
    assert x.shape == (40, 50)
    assert notes == ["features: 50 numeric, 0 dates, 0 categorical; 50 inputs"]


def test_notes_and_errors_name_a_few_of_many_columns(tmp_path: Path) -> None:
    table, path = _wide(300), tmp_path / "wide.csv"
    table.iloc[3] = np.nan
    table["y"] = np.arange(40) % 2
    table.to_csv(path, index=False)
    notes = load_table(path, TableOptions("y")).notes
    assert (
        "missing values filled in c0, c1, c2, c3, c4, c5 and 294 more (median and an indicator, or a category)" in notes
    )
    path.write_text(",".join(["a", "b"] * 50 + [f"c{i}" for i in range(50)] * 2) + "\n")
    with pytest.raises(ValueError, match=r"two columns named 'a', 'b', 'c0', 'c1', 'c10', 'c11' and 46 more; rename"):
        load_table(path, TableOptions("a"))
    np.savez(tmp_path / "wide.npz", **{f"c{i}": np.zeros(i + 1) for i in range(100)})
    with pytest.raises(ValueError, match=r"lengths: 'c0' has 1, .*'c5' has 6 and 94 more; expected one row count"):
        load_table(tmp_path / "wide.npz", TableOptions("c0"))


def test_an_archive_is_not_searched_for_each_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps for many arrays as for few: the list of all entries is read once."""
    steps = []
    entries = zipfile.ZipFile.infolist

    def counted(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        steps.append(len(entries(archive)))
        return entries(archive)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", counted)
    path = tmp_path / "wide.npz"
    np.savez(path, **{f"c{i}": np.ones(3) * i for i in range(50)}, **{"a.npy": np.ones(3)})
    arrays = read_npz(path, npz_names(path))
    assert arrays["c49"].tolist() == [49, 49, 49]
    assert arrays["a.npy"].tolist() == [1, 1, 1]
    assert sum(steps) <= 2 * 51
