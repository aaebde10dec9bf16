"""`puredrop predict` on a file that is read part by part: what reading it at once gives, in memory that does not grow."""

import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow
import pytest

import puredrop.cli.stored_rows as stored
from puredrop.cli import main
from puredrop.cli.rows_file import read_rows

NET = """
import torch


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
"""
BIG = 2**53 + 1  # an integer that float64 rounds
CHANCE = np.random.default_rng(0)
TABLES = {
    "numbers": "a,b\n0.1,1\n-2.5,2\n3e9,3\n.4,4\n5,5\n",
    "gaps after integers": f"a,b\n{BIG * 512 + 255},1\n{BIG},2\n{BIG},3\n,4\n5,5\n",
    "a gap in the first part": "a,b\n,1\n,2\n3,\n4,4\n",
    "fractions after integers": f"a,b\n{2**60 + 2**36 + 1},1\n7,2\n1.5,3\n",
    "text after numbers": "a,b,c\n1,1,1\n2,2,2\n3,3,3\n4,x,4\n",
    "numbers after text": "a,b,c\n1,x,1\n2,y,2\n3,3,3\n4,4,4\n",
    "truth": "a,b\nTrue,1\nFalse,2\nTrue,3\n",
    "truth, then a gap": "a,b\nTrue,1\nFalse,2\n,3\n",
    "text alone": "a,b\nx,y\nz,w\nu,v\n",
    "text at the end alone": "a\n1\n2\n3\nx\n",
    "no rows": "a,b\n",
    "nothing": "",
    "row names": "a,b\nr,1,2\ns,3,4\nt,5,6\n",
}


def answer(read):
    """The rows, or what is said of them."""
    try:
        x = read()
    except Exception as error:  # the same kind is expected
        return type(error), str(error)
    x = x if isinstance(x, np.ndarray) else x[0 : len(x)]
    return x.dtype, x.shape, x.tobytes()


def whole(path, columns):
    x, _ = read_rows(path, columns)
    if not isinstance(x, np.ndarray):
        raise ValueError(f"--columns is {','.join(columns)}; expected numbers, in one array")
    return x


@pytest.fixture
def two_rows(monkeypatch):
    """Read two rows at a time, however few there are."""
    monkeypatch.setattr(stored, "_SMALL", -1)
    monkeypatch.setattr(stored, "_NUMBERS", -1)
    monkeypatch.setattr(stored, "_LEAST_ROWS", 2)


@pytest.mark.parametrize("columns", [None, ("b", "a"), ("a",), ("b",), ("a", "z")])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_reading_it_at_once_gives(tmp_path, two_rows, name, columns):
    path = tmp_path / "x.csv"
    path.write_text(TABLES[name])
    assert answer(lambda: stored.read_features(path, columns, tmp_path)) == answer(lambda: whole(path, columns))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("columns", [None, ("b", "a"), ("truth", "a"), ("text",), ("kind", "a")])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_parquet_file_is_what_reading_it_at_once_gives(tmp_path, two_rows, rows, columns):
    table = pd.DataFrame({
        "a": CHANCE.normal(size=rows),
        "b": pd.array([BIG * 512 + 255, 2, 3, 4, None, 6, 7][:rows], "Int64"),
        "text": list("abcdefg")[:rows],
        "truth": (CHANCE.random(rows) < 0.5),
        "kind": pd.Categorical(list("1212121")[:rows]),
        "part": CHANCE.integers(0, 99, rows).astype(np.uint8),
    }, index=pd.Index(list("tuvwxyz")[:rows], name="key"))  # fmt: skip
    path = tmp_path / "x.parquet"
    table.to_parquet(path, row_group_size=3)
    assert answer(lambda: stored.read_features(path, columns, tmp_path)) == answer(lambda: whole(path, columns))
    path.write_bytes(path.read_bytes()[:-9])
    assert answer(lambda: stored.read_features(path, columns, tmp_path)) == answer(lambda: whole(path, columns))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_what_reading_it_at_once_gives(tmp_path, two_rows, save):
    arrays = {
        "x": CHANCE.normal(size=(9, 2, 3)),
        "integers": CHANCE.integers(0, 99, (5, 4)),
        "transposed": CHANCE.normal(size=(4, 6)).T,
        "none": np.zeros((0, 3)),
        "flat": CHANCE.normal(size=7).astype(">f4"),
        "single": np.float64(3),
    }
    path = tmp_path / "x.npz"
    save(path, **arrays)
    for columns in (None, *((name,) for name in arrays), ("absent",)):
        found = answer(lambda columns=columns: stored.read_features(path, columns, tmp_path))
        assert found == answer(lambda columns=columns: whole(path, columns)), columns
    assert isinstance(stored.read_features(path, None, tmp_path), stored.StoredRows)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x.npy").header_offset
    data[start + 300] ^= 1
    path.write_bytes(data)
    assert answer(lambda: stored.read_features(path, None, tmp_path)) == answer(lambda: whole(path, None))


def test_a_long_row_in_a_later_part_is_named(tmp_path, two_rows):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,4\n5,6\n7,8,9\n")
    with pytest.raises(ValueError, match="Expected 2 fields in line 5, saw 3"):
        stored.read_features(path, None, tmp_path)


def test_a_slice_is_an_array_that_may_be_written_to(tmp_path, two_rows):
    path = tmp_path / "x.csv"
    path.write_text(TABLES["numbers"])
    x = stored.read_features(path, None, tmp_path)
    assert len(x) == 5
    x[1:3][:] = 7
    np.testing.assert_array_equal(x[1:3], whole(path, None)[1:3])
    assert x[3:99].shape == (2, 2)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(stored, "_SMALL", 0)
    monkeypatch.setattr(stored, "_NUMBERS", 1 << 14)
    peaks, arrow, chosen = [], [], stored.chosen_numbers

    def counted(*arguments):
        arrow[-1] = max(arrow[-1], pyarrow.total_allocated_bytes())
        return chosen(*arguments)

    monkeypatch.setattr(stored, "chosen_numbers", counted)
    for rows in (5000, 20000, 80000):  # the first for what is imported
        table = pd.DataFrame(CHANCE.normal(size=(rows, 8)).astype(np.float32), columns=list("abcdefgh"))
        path = tmp_path / f"x.{kind}"
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path, row_group_size=5000)
        del table
        arrow.append(0)
        tracemalloc.start()
        assert len(stored.read_features(path, None, tmp_path)) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]
    assert arrow[2] <= 1.5 * arrow[1]


def test_the_command_writes_the_same_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_stored_nets.py").write_text(NET)
    pd.DataFrame(CHANCE.normal(size=(50, 4)), columns=list("abcd")).to_csv("rows.csv", index=False)
    line = ["predict", "my_stored_nets:net", "rows.csv", "--members", "8", "--part-rows", "12", "--out"]
    assert main([*line, "whole.parquet"]) == 0
    monkeypatch.setattr(stored, "_SMALL", 0)
    monkeypatch.setattr(stored, "_LEAST_ROWS", 5)
    monkeypatch.setattr(stored, "_NUMBERS", 0)
    assert main([*line, "stored.parquet"]) == 0
    assert (tmp_path / "stored.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    capsys.readouterr()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored, "_write_table", full)
    assert main([*line, "full.parquet"]) == 2
    said = "cannot write the rows of rows.csv to a temporary file in .: No space left on device"
    assert said in capsys.readouterr().err
