"""`puredrop explain`: state files, folders and runs; what it writes, and what it refuses in one line."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import nn

from puredrop.cli import explain_job, main
from puredrop.cli.explain_job import prepare
from puredrop.cli.requests import ExplainRequest

FACTORY = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 3))


def line():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_explained_nets.py").write_text(FACTORY)
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    table = pd.DataFrame(x, columns=list("abcd"))
    table["label"], table["price"] = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0), x[:, 0] * 2.0
    table["text"] = [f"row {i}" for i in range(90)]
    table.to_csv(tmp_path / "rows.csv", index=False)
    np.savez(tmp_path / "rows.npz", x=x, y=table["label"].to_numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def state(**more):
    net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 3))
    return {**net.state_dict(), **more}


def test_a_state_file_with_its_undropped_model(folder, capsys):
    weights = state()
    safetensors.torch.save_file(weights, "net.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state().items()}}, "undropped.pt")
    line = ["my_explained_nets:net", "rows.csv", "--target", "label", "--columns", "a,b,c,d", "--members", "16"]
    assert main(["explain", *line, "--weights", "net.safetensors", "--against", "undropped.pt", "--out", "page"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "page: page/explain.html"
    assert said.out.startswith("Dropout adds ")
    assert "How does dropout work?" in said.err
    record = json.loads((folder / "page" / "explain.json").read_text())
    ids = [one["id"] for one in record["sections"]]
    assert ids == ["network", "division", "reliance", "one-pass", "l2", "noise", "uncertainty", "why"]
    assert "without dropout" in record["sections"][2]["sentence"]
    page = (folder / "page" / "explain.html").read_text()
    assert "puredrop explain my_explained_nets:net rows.csv --target label" in page
    assert sorted(path.name for path in (folder / "page").iterdir()) == ["explain.html", "explain.json"]


def request(**more):
    names = ("weights", "against", "target", "columns", "task", "data_dir", "out", "data")
    return ExplainRequest(**{**dict.fromkeys(names), "rows": 1024, "members": 16, "seed": 0, "copy": 0, **more})


def test_what_is_loaded_is_what_the_file_holds(folder):
    weights = state()
    torch.save(weights, "net.pt")
    job = prepare(request(model="my_explained_nets:net", data="rows.npz", weights=folder / "net.pt", rows=40))
    for name, value in job.subject.model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert (len(job.subject.x), len(job.subject.y), job.subject.task) == (40, 40, "classification")
    assert job.facts[:3] == ("rows.npz", "195 parameters", "40 rows")
    table = pd.read_csv("rows.csv")
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)).state_dict(), "line.pt")
    job = prepare(
        request(model="my_explained_nets:line", data="rows.csv", target="price", columns=tuple("abcd"),
                weights=folder / "line.pt")
    )  # fmt: skip
    assert job.subject.task == "regression"
    assert torch.equal(job.subject.y, torch.tensor(table["price"].to_numpy(), dtype=torch.float32))


def test_digits_have_training_rows_of_their_own(folder):
    (folder / "my_digit_nets.py").write_text(
        FACTORY.replace("Linear(4, 24)", "Linear(64, 24)").replace("24, 3", "24, 10")
    )
    job = prepare(request(model="my_digit_nets:net", data="digits", rows=200))
    assert (len(job.subject.y), len(job.subject.train_y)) == (200, 200)
    assert job.subject.train_x.shape == (200, 64)


def test_a_finished_run_of_compare(folder, capsys):
    line = ["compare", "digits", "--rows", "120", "--hidden", "12", "--rates", "0.5", "--seeds", "2", "--epochs", "2"]
    assert main([*line, "--input-rate", "0.1", "--out", "run"]) == 0
    job = prepare(request(model="run", copy=1))
    weights = safetensors.torch.load_file("run/weights-dropout.safetensors")
    assert torch.equal(job.subject.model.get_submodule("3").weight, weights["3.weight"][1])
    assert [m.p for m in job.subject.model.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.5]
    assert [m.p for m in job.subject.undropped.modules() if isinstance(m, nn.Dropout)] == [0.0, 0.0]
    assert job.subject.draws == 2 * 100
    assert main(["explain", "run", "--members", "16"]) == 0
    assert (folder / "run" / "explain.html").is_file()
    capsys.readouterr()
    assert main(["explain", "run", "--copy", "2"]) == 2
    assert "--copy is 2; expected 0 to 1, the seeds of run" in capsys.readouterr().err
    assert main(["explain", "run", "digits"]) == 2
    assert "DATA is given, but run is a run of compare, which has its own; drop it" in capsys.readouterr().err


def test_a_folder_of_hugging_face(folder, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "row", *map(str, range(50))]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "bert" / "vocab.txt")).save_pretrained("bert")
    line = ["explain", "bert", "rows.csv", "--columns", "text", "--target", "label", "--members", "16", "--out", "page"]
    assert main([*line, "--rows", "24"]) == 0
    record = json.loads((folder / "page" / "explain.json").read_text())
    assert record["facts"][0] == "rows.csv"
    assert {one["id"] for one in record["sections"]} >= {"network", "one-pass", "l2", "uncertainty"}
    ids = np.random.default_rng(1).integers(5, 50, (24, 6))
    np.savez("ids.npz", input_ids=ids, attention_mask=np.ones_like(ids), labels=np.arange(24) % 3)
    job = prepare(request(model="bert", data="ids.npz"))
    assert set(job.subject.x) == {"input_ids", "attention_mask"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["my_explained_nets:net"], "DATA is missing; expected digits, mnist, or a .csv, .parquet or .npz file"),
        (["my_explained_nets:net", "rows.csv"], "--target is missing; expected the column of rows.csv to predict"),
        (["my_explained_nets:net", "rows.csv", "--target", "nope"], "has no column 'nope'; it has a, b, c, d"),
        (["my_explained_nets:net", "none.csv", "--target", "label"], "DATA 'none.csv' is no file"),
        (["my_explained_nets:net", "rows.npz", "--target", "z"], "has no array 'z'; it has x, y"),
        (["my_explained_nets:net", "rows.csv", "--target", "text"], "--target 'text' holds object; expected numbers"),
        (["my_explained_nets:net", "rows.csv", "--target", "label", "--columns", "text"], "names a column of text"),
        (["my_explained_nets:net", "rows.npz", "--weights", "none.pt"], "--weights 'none.pt' does not exist"),
        (["my_explained_nets:net", "rows.npz", "--weights", "bad.pt"],
         "--weights 'bad.pt' does not fit the model: missing 3.bias; unexpected extra, other; other shapes: 0.bias is (2,), "
         "the model's (24,)"),
        (["my_explained_nets:net", "rows.npz", "--weights", "rows.csv"], "cannot be read as weights alone"),
        (["my_explained_nets:net", "rows.npz", "--weights", "bad.safetensors"], "is no safetensors file"),
        (["my_explained_nets:net", "rows.npz", "--weights", "list.pt"], "holds list; expected a state dict"),
        (["my_explained_nets:net", "rows.npz", "--rows", "1"], "--rows is 1; expected 2 or more"),
        (["my_explained_nets:net", "rows.npz", "--members", "4"], "--members is 4; expected 16 or more"),
        (["my_explained_nets:net", "rows.npz", "--out", "rows.csv"], "--out is 'rows.csv', which is a file"),
        (["my_explained_nets:net", "big.npz"], "y has classes 0 to 7; expected 0 to 2"),
        (["my_explained_nets:nothing", "rows.npz"], "my_explained_nets has no function or class 'nothing'"),
        (["empty", "rows.npz"], "MODEL empty is no finished run of compare, and Hugging Face cannot load it"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[1:]) or "no data",
)  # fmt: skip
def test_bad_input_takes_one_line_and_leaves_nothing(folder, capsys, line, says):
    bad = state(extra=torch.zeros(1), other=torch.zeros(2))
    bad["0.bias"] = torch.zeros(2)
    del bad["3.bias"]
    torch.save(bad, "bad.pt")
    torch.save([1, 2], "list.pt")
    (folder / "bad.safetensors").write_bytes(b"not it")
    np.savez("big.npz", x=np.zeros((20, 4), np.float32), y=np.arange(20) % 8)
    (folder / "empty").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    assert main(["explain", *line]) == 2
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1]
    assert error[-1].startswith("puredrop explain: error: ")
    assert not [text for text in error[:-1] if "no --weights" not in text]
    assert [name for name in sorted(path.name for path in folder.iterdir()) if name != "__pycache__"] == before


def test_a_pickle_is_not_run(folder, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "harm"), "w"))

    torch.save({"0.weight": Evil()}, "evil.pt")
    assert main(["explain", "my_explained_nets:net", "rows.npz", "--weights", "evil.pt"]) == 2
    assert not (folder / "harm").exists()
    assert "cannot be read as weights alone" in capsys.readouterr().err


FOREIGN = """
open("harm", "w").close()
from transformers import BertConfig, BertForSequenceClassification


class Config(BertConfig):
    model_type = "foreign"


class Model(BertForSequenceClassification):
    config_class = Config
"""
AUTO_MAP = {
    "AutoConfig": "foreign.Config", "AutoModel": "foreign.Model", "AutoTokenizer": ["foreign.Tokenizer", None],
    "AutoModelForSequenceClassification": "foreign.Model",
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "foreign", "auto_map": AUTO_MAP},
        {"auto_map": AUTO_MAP, "architectures": ["AutoModelForSequenceClassification"]},
        {"auto_map": AUTO_MAP, "architectures": ["AutoModel"]},
        {"architectures": ["pipeline"]},
        {"architectures": [["a"]]},
        {"attn_implementation": "somebody/kernel"},
        {"attn_implementation": {"": "eager", "text_config": "somebody/kernel"}},
    ],
    ids=["config", "auto class", "auto model", "pipeline", "list", "kernel", "nested kernel"],
)
def test_code_in_a_folder_is_never_run_and_nothing_is_asked(folder, change, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    (folder / "bert" / "foreign.py").write_text(FOREIGN)
    path = folder / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    ids = np.random.default_rng(1).integers(5, 50, (24, 6))
    np.savez("ids.npz", input_ids=ids, labels=np.arange(24) % 3)
    capsys.readouterr()
    assert main(["explain", "bert", "ids.npz", "--members", "16"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("puredrop explain: error: MODEL bert is no finished run of compare, and Hugging Face")
    assert asked == []
    assert not (folder / "harm").exists()
    assert not (folder / "runs").exists()


def test_a_tokenizer_in_a_folder_runs_no_code(folder, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    (folder / "bert" / "foreign.py").write_text(FOREIGN)
    told = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["foreign.Tokenizer", None]}}
    (folder / "bert" / "tokenizer_config.json").write_text(json.dumps(told))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    line = ["explain", "bert", "rows.csv", "--columns", "text", "--target", "label", "--members", "16"]
    assert main(line) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (folder / "harm").exists()


def test_an_analysis_that_fails_or_cannot_be_written_leaves_nothing(folder, monkeypatch, capsys):
    safetensors.torch.save_file(state(), "net.safetensors")
    line = ["explain", "my_explained_nets:net", "rows.npz", "--weights", "net.safetensors", "--members", "16"]
    before = sorted(path.name for path in folder.iterdir())

    def fail(subject, on_question):
        assert (folder / "runs" / "my_explained_nets-net-explain" / ".lock").is_file()
        assert main(line) == 2
        assert f"another run (process {os.getpid()}) writes to" in capsys.readouterr().err
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(explain_job, "analyse", fail)
    assert main(line) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [name for name in sorted(path.name for path in folder.iterdir()) if name != "__pycache__"] == before
