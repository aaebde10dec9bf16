import decimal
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from puredrop.cli import main
from puredrop.compare.tables import TableOptions, load_table

pytestmark = pytest.mark.usefixtures("unexplained")
UCI = Path(__file__).parents[3] / "shared/data/uci"
SMALL = ["--hidden", "16", "--rates", "0.3", "--seeds", "2", "--epochs", "2"]


def frame(rows=200, seed=0):
    """A table with everything a user's may have."""
    rng = np.random.default_rng(seed)
    color = rng.choice(["red", "green", "blue", None], rows)
    data = {
        "id": [f"row-{i}" for i in range(rows)],
        "size": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(5, 2, rows)),
        "count": rng.integers(0, 9, rows),
        "color": color,
        "flag": rng.random(rows) < 0.5,
        "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 400, rows), "D"),
        "person": rng.integers(0, 25, rows),
        "void": np.full(rows, np.nan),
    }
    data["price"] = 3 * np.nan_to_num(data["size"], nan=5) + (color == "red") * 4 + rng.normal(0, 0.5, rows)
    data["label"] = np.where(data["price"] > 16, "dear", "cheap")
    return pd.DataFrame(data)


@pytest.fixture(params=[".csv", ".parquet"])
def path(request, tmp_path):
    file = tmp_path / f"table{request.param}"
    frame().to_csv(file, index=False) if request.param == ".csv" else frame().to_parquet(file)
    return file


def rows_of(data):
    return [len(part.y) for part in (data.train, data.validation, data.test)]


def test_a_table_with_text_dates_and_missing_values(path):
    data = load_table(path, TableOptions("price"))
    assert data.name == "table"
    assert data.task.name == "regression"
    assert rows_of(data) == [133, 27, 40]
    notes = " | ".join(data.notes)
    assert "target 'price': regression (inferred; --task says otherwise), 200 distinct values" in notes
    assert "features: 3 numeric, 1 dates, 3 categorical; " in notes
    assert "missing values filled in size, color" in notes
    assert "dropped: id (a text that hardly repeats), void (empty)" in notes
    # size and its indicator, count, person, when; red, green, blue and missing; two of flag and two of label
    assert data.train.x.shape[1] == 5 + 4 + 2 + 2
    for part in (data.train, data.validation, data.test):
        assert part.x.isfinite().all()
        assert part.x.dtype == part.y.dtype == torch.float32
    # The first columns are numbers, standardised on the training rows alone.
    assert data.train.x[:, 0].mean().abs() < 1e-5
    assert data.test.x[:, 0].mean().abs() > 1e-3


def test_classes_are_inferred_from_text_whole_numbers_and_flags(path):
    for target, classes in (("label", 2), ("count", 9), ("flag", 2)):
        data = load_table(path, TableOptions(target))
        assert (data.task.name, data.task.outputs) == ("classification", classes)
        assert data.train.y.dtype == torch.int64
    assert load_table(path, TableOptions("count", task="regression")).task.name == "regression"


def test_columns_of_every_kind_that_parquet_holds(tmp_path):
    rows, rng = 100, np.random.default_rng(0)
    kinds = {
        "category": (pd.Categorical(rng.choice(list("abc"), rows)), 3),
        "duration": (pd.to_timedelta(rng.integers(0, 99, rows), "s"), 1),
        "decimal": ([decimal.Decimal(i) for i in range(rows)], 1),
        "lists": ([[1, 2]] * rows, 1),
        "zoned": (pd.date_range("2020", periods=rows, tz="Europe/Berlin"), 1),
        "whole": (pd.array([1, None, 3, 4] * (rows // 4), dtype="Int64"), 2),
        "flag": (pd.array([True, None] * (rows // 2), dtype="boolean"), 2),
        "day": (pd.date_range("2020", periods=rows).date, 1),
        "infinite": ([np.inf, 1.0, 2.0, 3.0] * (rows // 4), 2),
    }
    for name, (column, inputs) in kinds.items():
        table = pd.DataFrame({"a": rng.normal(size=rows), "y": rng.normal(size=rows), name: column})
        table.to_parquet(tmp_path / "t.parquet")
        data = load_table(tmp_path / "t.parquet", TableOptions("y"))
        assert data.train.x.shape[1] == 1 + inputs, name
        assert data.train.x.isfinite().all(), name


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", X=rng.normal(size=(60, 3)), z=rng.normal(size=60), y=rng.normal(size=60))
    data = load_table(tmp_path / "t.npz", TableOptions("y"))
    assert data.train.x.shape[1] == 4


def test_groups_stay_together_and_time_runs_forward(path, monkeypatch):
    from puredrop.compare import tables

    split = {}
    monkeypatch.setattr(tables, "features_of", lambda features, train: (np.zeros((200, 1), np.float32), []))
    original = tables._split_rows
    monkeypatch.setattr(tables, "_split_rows", lambda *a: split.setdefault("parts", original(*a)))
    table = frame()
    load_table(path, TableOptions("price", group="person"))
    people = [set(table["person"].iloc[rows]) for rows in split.pop("parts")]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    load_table(path, TableOptions("price", time="when"))
    train, validation, test = (table["when"].iloc[rows] for rows in split.pop("parts"))
    assert train.max() <= validation.min() <= validation.max() <= test.min()
    load_table(path, TableOptions("label", rows=100))
    train, validation, test = split.pop("parts")
    assert len(train) + len(validation) == 100
    assert not set(train) & set(test)
    seeds = []
    for seed in (0, 0, 1):
        load_table(path, TableOptions("label", split_seed=seed))
        seeds.append(split.pop("parts")[2].tolist())
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("target", ["price", "label"])
def test_the_command_on_a_table(path, tmp_path, capsys, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(path), "--target", target, *SMALL]) == 0
    out, err = capsys.readouterr()
    regression = target == "price"
    assert [line.split()[0] for line in out.splitlines()] == [
        "NLL",
        "RMSE" if regression else "error",
        "gap",
        "MC",
        "page",
    ]
    assert err.splitlines()[0].startswith(f"target '{target}'")
    results = json.loads((tmp_path / "runs/table/results.json").read_text())
    assert results["identity"]["task"] == ("regression" if regression else "classification")
    frame_of_arms = pd.json_normalize(results["arms"])  # results load as a DataFrame
    assert frame_of_arms["dropout.nll.mean"].notna().all()
    page = (tmp_path / "runs/table/report.html").read_text()
    assert ("RMSE on test rows" in page) == regression
    assert "target &#39;" + target in page


def test_resume_and_repeat_a_table(path, tmp_path, capsys):
    command = ["compare", str(path), "--target", "price", *SMALL]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["differences"] == b["differences"]
    assert main([*command, "--out", str(tmp_path / "a"), "--resume"]) == 0


@pytest.mark.skipif(not UCI.is_dir(), reason="the UCI sets are not beside this checkout")
@pytest.mark.parametrize("name", ["concrete", "energy", "kin8nm", "power-plant", "wine-quality-red", "yacht"])
def test_the_uci_sets(tmp_path, name, capsys):
    values = np.loadtxt(UCI / name / "data.txt")
    features = np.loadtxt(UCI / name / "index_features.txt", dtype=int)
    target = int(np.loadtxt(UCI / name / "index_target.txt"))
    table = pd.DataFrame(values[:, features], columns=[f"f{i}" for i in features])
    table["y"] = values[:, target]
    table.to_csv(tmp_path / "t.csv", index=False)
    command = [
        "compare",
        str(tmp_path / "t.csv"),
        "--target",
        "y",
        "--task",
        "regression",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*command, "--hidden", "50", "--rates", "0.05", "--seeds", "2", "--epochs", "8", "--rows", "240"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    spread = table["y"].std()
    for arm in results["arms"].values():
        assert 0 < arm["error"]["mean"] < spread  # better than the mean of the target
        assert np.isfinite(arm["nll"]["mean"])


def test_a_hundred_thousand_rows(tmp_path, capsys):
    frame(100_000).to_csv(tmp_path / "big.csv", index=False)
    command = [
        "compare",
        str(tmp_path / "big.csv"),
        "--target",
        "label",
        "--out",
        str(tmp_path / "run"),
        *SMALL[:-1],
        "1",
    ]
    assert main(command) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert sum(results["rows"].values()) == 100_000
    assert results["arms"]["none"]["error"]["mean"] < 0.1  # price, a feature here, gives the label away


def written(tmp_path, text, name="t.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return name


def rows(line, count=40):
    return "".join(line.format(i=i, j=i % 3) + "\n" for i in range(count))


BAD = {
    "no target": (
        lambda d: [written(d, "a,b\n" + rows("{i},{i}"))],
        r"--target is missing; expected the column of t.csv",
    ),
    "unknown column": (
        lambda d: [written(d, "price,size\n" + rows("{i},{i}")), "--target", "prise"],
        r"no column 'prise'; did you mean 'price'",
    ),
    "constant target": (lambda d: [written(d, "a,b\n" + rows("{i},1")), "--target", "b"], r"target 'b' is always .*1"),
    "a class of one row": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}") + "1,7\n"), "--target", "b"],
        r"class .*7.* has one row; expected at least two",
    ),
    "missing target": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}") + "1,\n"), "--target", "b"],
        r"target 'b' has 1 missing values \(data rows 41\)",
    ),
    "columns twice": (lambda d: [written(d, "a,a,b\n" + rows("{i},1,{j}")), "--target", "b"], r"two columns named 'a'"),
    "empty file": (lambda d: [written(d, ""), "--target", "b"], r"t.csv is empty"),
    "no rows": (lambda d: [written(d, "a,b\n"), "--target", "b"], r"t.csv holds 0 rows; expected at least 30"),
    "encoding": (
        lambda d: [written(d, "a,b\n" + rows("é{i},{j}"), encoding="latin-1"), "--target", "b"],
        r"t.csv is not UTF-8 text .*save it as UTF-8",
    ),
    "ragged": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}") + "1,2,3,4\n"), "--target", "b"],
        r"t.csv: cannot be read",
    ),
    "not parquet": (lambda d: [written(d, "hello", "t.parquet"), "--target", "b"], r"t.parquet: cannot be read"),
    "not npz": (lambda d: [written(d, "hello", "t.npz"), "--target", "b"], r"t.npz: cannot be read"),
    "no file": (lambda d: ["nowhere.csv", "--target", "b"], r"nowhere.csv: no such file"),
    "NUL in a name": (
        lambda d: [written(d, "a,b,c\0\n" + rows("{i},{j},x")), "--target", "b"],
        r"t.csv has a column named 'c\\x00', with a NUL character; rename it",
    ),
    "only the target": (lambda d: [written(d, "b\n" + rows("{i}")), "--target", "b"], r"no column except b"),
    "no feature": (
        lambda d: [written(d, "a,b\n" + rows("t{i},{i}")), "--target", "b"],
        r"no usable feature is left; dropped: a",
    ),
    "huge": (
        lambda d: [written(d, "a,b\n" + rows("1e300,{i}")), "--target", "b"],
        r"column 'a' holds 1e\+300; expected numbers below 1e30",
    ),
    "text regression": (
        lambda d: [written(d, "a,b\n" + rows("{i},x{j}")), "--target", "b", "--task", "regression"],
        r"target 'b' holds 'x0'; expected numbers for regression",
    ),
    "times of no known form": (
        lambda d: [written(d, "a,b,t\n" + rows("{i},{j},{i}/2/2024")), "--target", "b", "--time", "t"],
        r"--time 't' holds '0/2/2024'; expected ISO 8601 dates or numbers",
    ),
    "both splits": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}")), "--target", "b", "--group", "a", "--time", "a"],
        r"--group and --time are given",
    ),
    "one role twice": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}")), "--target", "b", "--group", "b"],
        r"expected different columns",
    ),
    "few groups": (
        lambda d: [written(d, "a,b,g\n" + rows("{i},{j},1")), "--target", "b", "--group", "g"],
        r"--group has fewer than three values",
    ),
    "rows beyond": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}")), "--target", "b", "--rows", "40"],
        r"--rows is 40; expected 30 to 32",
    ),
    "a table with a folder": (
        lambda d: [written(d, "a,b\n" + rows("{i},{j}")), "--target", "b", "--data-dir", "."],
        r"--data-dir is for MNIST, but data is 't.csv'; drop the option",
    ),
    "digits with a split": (
        lambda d: ["digits", "--split-seed", "3"],
        r"--split-seed is for a table, but data is 'digits'",
    ),
    "digits with a target": (lambda d: ["digits", "--target", "b"], r"--target is for a table, but data is 'digits'"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, capsys, monkeypatch, what):
    make, message = BAD[what]
    monkeypatch.chdir(tmp_path)
    arguments = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert sorted(tmp_path.iterdir()) == before
