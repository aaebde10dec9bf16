"""Attack: whatever stands in a file or on the command line, the answer is right or one line with exit code 2."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import safetensors
import safetensors.torch
import torch

import puredrop
from attacks.mutations import as_json, changed_bytes, changed_json, changed_text, odd_text
from attacks.outcome import Choices, Outcome
from attacks.workplace import (
    COMPARE,
    PREDICT,
    UNFINISHED,
    Said,
    command,
    stopped,
    unfinished_parts,
    unfinished_run,
    workplace,
)

__all__ = ["PROMISE", "attack"]

PROMISE = "files and arguments from anywhere give a right answer, or one line and exit code 2; never a traceback"
_SECONDS = 30


def attack(cases: int, seed: int, first: int = 0) -> Outcome:
    """Give changed input to each parser in turn."""
    outcome, counts = Outcome(PROMISE), Counter[str]()
    with workplace() as folder, mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        _make_files()
        saved = folder.with_name(f"{folder.name}-saved")
        shutil.copytree(folder, saved)
        try:
            for number in range(first, first + cases):
                choices = Choices("parsers", seed, number)
                name = choices.choice(list(_TARGETS))
                try:
                    with _limited():
                        problem, kind = _TARGETS[name](choices)
                except TimeoutError:
                    problem, kind = f"takes more than {_SECONDS} s", "late"
                outcome.cases += 1
                counts[kind] += 1
                if problem:
                    outcome.failures[number] = f"{name}: {problem}"
                _restore(saved, folder)
        finally:
            shutil.rmtree(saved)
    outcome.detail = f"{len(_TARGETS)} parsers; {counts['answer']} answers, {counts['refusal']} refusals"
    return outcome


def _make_files() -> None:
    unfinished_run()
    command(COMPARE)
    unfinished_parts()


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TimeoutError in a block that takes too long; print where it is if it does not even notice that."""

    def late(*given: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    faulthandler.dump_traceback_later(4 * _SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _restore(saved: Path, folder: Path) -> None:
    """Put back every file that a case has changed, and remove what it has made."""
    whole = {path.relative_to(saved) for path in saved.rglob("*")}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder) not in whole and "__pycache__" not in path.parts:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in sorted(whole):
        source, path = saved / name, folder / name
        if source.is_dir():
            path.mkdir(exist_ok=True)
        elif not path.is_file() or path.read_bytes() != source.read_bytes():
            shutil.copy2(source, path)


def _judged(said: Said, *codes: int) -> tuple[str, str]:
    """Return what is wrong with a command's end, or "", and its kind; some codes besides 2 are right answers."""
    if said.is_refusal:
        return "", "refusal"
    return ("", "answer") if said.code in codes else (f"code {said.code}: {said.errors[-700:]}", "failure")


def _changed_table(choices: Choices) -> str:
    """Write a changed file of rows, and return its name."""
    name = choices.choice(("rows.csv", "rows.csv", "rows.parquet", "rows.npz"))
    path = Path(name)
    if name == "rows.csv" and choices.chance(0.6):
        path.write_bytes(changed_text(choices, path.read_text()).encode(errors="replace"))
    else:
        path.write_bytes(changed_bytes(choices, path.read_bytes()))
    return name


def _rows_of_predict(choices: Choices) -> tuple[str, str]:
    name = _changed_table(choices)
    shutil.rmtree("out.parquet.parts")
    line = [name if word == "rows.csv" else word for word in PREDICT]
    line = ["x" if word == "a,b,c,d" and name == "rows.npz" else word for word in line]
    problem, kind = _judged(command(line), 0)
    if not problem and kind == "refusal" and Path("out.parquet").exists():
        problem = "it refuses, and has written out.parquet"
    if not problem and kind == "answer" and len(pd.read_parquet("out.parquet")) < 1:
        problem = "no rows are written"
    return problem, kind


def _rows_of_compare(choices: Choices) -> tuple[str, str]:
    line = ["compare", _changed_table(choices), "--target", choices.choice(("label", "y", "name", odd_text(choices)))]
    line += choices.choice(([], [], ["--group", "name"], ["--time", "a"], ["--task", "regression"], ["--seeds", "2"]))
    with stopped():
        return _judged(command(line), 130)


def _rows_of_explain(choices: Choices) -> tuple[str, str]:
    line = ["explain", "attacked_nets:net", _changed_table(choices), "--weights", "weights.pt", "--members", "16"]
    line += choices.choice(([], ["--target", "label"], ["--target", "label", "--columns", "a,b,c,d"]))
    with stopped():
        return _judged(command(line), 130)


def _weights(choices: Choices) -> tuple[str, str]:
    name = choices.choice(("weights.safetensors", "weights.pt"))
    path = Path(name)
    path.write_bytes(changed_bytes(choices, path.read_bytes()))
    shutil.rmtree("out.parquet.parts")
    return _judged(command([*PREDICT, "--weights", name]), 0)


def _run_folder(choices: Choices) -> tuple[str, str]:
    """Read results.json or weights: changed bytes, or another record with a checksum that fits, or with none."""
    name = choices.choice(("results.json", "results.json", "weights-dropout.safetensors", "weights-none.safetensors"))
    path = Path("run") / name
    if name == "results.json" and choices.chance(0.8):
        record = changed_json(choices, {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"})
        path.write_bytes(as_json(record))
    else:
        path.write_bytes(changed_bytes(choices, path.read_bytes()))
    with stopped():
        line = ["explain", "run"] if choices.chance(0.5) else [*COMPARE, "--resume"]
        return _judged(command(line), 0, 130)


def _checkpoint(choices: Choices) -> tuple[str, str]:
    path = Path("unfinished/checkpoint.safetensors")
    if choices.chance(0.7):
        _write_checkpoint(choices, path)
    else:
        path.write_bytes(changed_bytes(choices, path.read_bytes()))
    with stopped():
        return _judged(command([*UNFINISHED, "--resume"]), 130)


def _write_checkpoint(choices: Choices, path: Path) -> None:
    """Write a checkpoint with a right checksum whose state is another."""
    from puredrop._files import save_checkpoint

    with safetensors.safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    for _ in range(choices.randint(0, 2)):
        name = choices.choice(list(tensors))
        kind = choices.randrange(3)
        if kind == 0 and len(tensors) > 1:
            del tensors[name]
        elif kind == 1:
            tensors[name] = tensors[name].flatten()[:1].clone()
        else:
            tensors[choices.choice(("x", "a/b", "none/", "none/best/x"))] = torch.ones(2)
    save_checkpoint(path, tensors, changed_json(choices, state))


def _job(choices: Choices) -> tuple[str, str]:
    path = Path("out.parquet.parts") / choices.choice(("job.json", "000000000000.parquet"))
    if path.suffix == ".json" and choices.chance(0.7):
        path.write_bytes(as_json(changed_json(choices, json.loads(path.read_text()))))
    else:
        path.write_bytes(changed_bytes(choices, path.read_bytes()))
    said = command(PREDICT)
    if said.code == 0 and len(pd.read_parquet("out.parquet")) != 50:
        return "it ends with other than 50 rows", "failure"
    return _judged(said, 0)


def _run_state(choices: Choices) -> tuple[str, str]:
    """Load the state of a pinned run: it is taken, or refused with an error that is no accident."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    run = puredrop.reproducible(puredrop.convert(model), seed=1)
    try:
        run.load_state_dict(changed_json(choices, run.state_dict()))
    except (ValueError, TypeError) as error:
        return ("", "refusal") if str(error) else ("an error without words", "failure")
    except Exception as error:
        return f"{type(error).__name__}: {error}", "failure"
    finally:
        run.release()
    return "", "answer"


def _model(choices: Choices) -> tuple[str, str]:
    spec = choices.choice((odd_text(choices), f"{odd_text(choices)}:{odd_text(choices)}", "attacked_nets:net", "run"))
    shape = choices.choice((["--input", "2,4"], ["--input", odd_text(choices)], []))
    name = choices.choice(("sites", "check", "explain", "predict"))
    more = {"predict": ["rows.csv", "--out", "new.parquet"], "explain": ["rows.csv"]}.get(name, shape)
    with stopped():
        return _judged(command([name, spec, *more]), 0, 1, 130)


def _source(choices: Choices) -> tuple[str, str]:
    path = Path("attacked_source.py")
    path.write_bytes(changed_bytes(choices, Path("attacked_nets.py").read_bytes()))
    fix = ["--fix"] if choices.chance(0.2) else []
    said = command(["check", str(path), "--format", choices.choice(("text", "json", "sarif", "github")), *fix])
    is_said = said.code == 2 and not said.errors  # the finding PD001, on stdout
    return ("", "refusal") if is_said else _judged(said, 0, 1)


_OPTIONS = (
    "--target", "--task", "--group", "--time", "--split-seed", "--rows", "--model", "--hidden", "--rates", "--epochs",
    "--input-rate", "--device", "--dtype", "--arms", "--groups", "--sweep", "--seeds", "--out", "--resume", "--members",
    "--columns", "--weights", "--against", "--copy", "--masks", "--part-rows", "--input", "--json", "--format", "--fix",
    "--data-dir", "--seed",
)  # fmt: skip
_ARGUMENTS = (
    "digits", "rows.csv", "label", "1", "2", "16", "0.5", "8,4", "0.1,0.2", "run", "out.parquet", "cpu", "float64",
    "none,dropout", "none,dropout,batchwise", "weights.pt", "weights.safetensors", "regression", "0:0.8:0.2", "a,b,c,d",
)  # fmt: skip


def _options(choices: Choices) -> tuple[str, str]:
    line = [choices.choice(("compare", "sites", "check", "predict", "explain", "verify"))]
    line += choices.choice((["digits"], ["attacked_nets:net", "rows.csv"], ["rows.csv"], ["run"], []))
    for _ in range(choices.randint(0, 4)):
        line += [choices.choice(_OPTIONS), choices.choice((*_ARGUMENTS, odd_text(choices)))]
    refuse_to_download = mock.patch("urllib.request.urlopen", side_effect=OSError("no network in an attack"))
    with stopped(), refuse_to_download, mock.patch("puredrop.cli.predict_job.execute"):
        problem, kind = _judged(command(line), 0, 1, 130)
    return f"{line}: {problem}" if problem else "", kind


_TARGETS: dict[str, Callable[[Choices], tuple[str, str]]] = {
    "rows of predict": _rows_of_predict,
    "rows of compare": _rows_of_compare,
    "rows of explain": _rows_of_explain,
    "weights": _weights,
    "folder of a run": _run_folder,
    "checkpoint": _checkpoint,
    "job of predict": _job,
    "state of a pinned run": _run_state,
    "model": _model,
    "source": _source,
    "options": _options,
}
