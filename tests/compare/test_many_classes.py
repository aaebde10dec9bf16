"""A table with more classes than the machine's memory takes is refused before anything is trained."""

import numpy as np
import pandas as pd
import pytest

from puredrop.cli import main
from puredrop.compare import evaluation
from puredrop.compare.tasks import Classification, Regression


def test_many_classes_are_refused_with_the_limit(tmp_path, monkeypatch, capsys):
    chance = np.random.default_rng(0)
    table = pd.DataFrame(chance.normal(size=(600, 3)), columns=list("abc"))
    table.assign(y=[f"k{i % 60}" for i in range(600)]).to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "machine_memory", lambda: 10**8)
    assert main(["compare", "rows.csv", "--target", "y"]) == 2
    said = capsys.readouterr().err
    assert "60 classes need 0.2 GB, since 50 members of 10 seeds are evaluated on 120 test rows" in said
    assert "this machine has 0.1; expected fewer (join classes, use fewer --seeds, or --task regression)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_fits_and_what_is_no_class_is_not_refused(monkeypatch):
    evaluation.check_memory(Classification(10), 10_000, 2)
    monkeypatch.setattr(evaluation, "machine_memory", lambda: 10**8)
    evaluation.check_memory(Classification(10), 100, 10)
    evaluation.check_memory(Regression(0.5, 2.0), 10**7, 10)
    with pytest.raises(ValueError, match=r"10 classes need 3\.2 GB"):
        evaluation.check_memory(Classification(10), 10_000, 10)
    monkeypatch.setattr(evaluation, "machine_memory", lambda: None)
    evaluation.check_memory(Classification(10**5), 10**6, 10)
