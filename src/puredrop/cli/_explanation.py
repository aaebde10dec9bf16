"""`puredrop explain`: the page for a trained network of the user's, or for one of a finished run of compare."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import Module

from puredrop._files import write
from puredrop.cli._rows import read_rows
from puredrop.compare.data import load
from puredrop.compare.run import data_of, network_of
from puredrop.compare.subject import options_of, subject, weights_of
from puredrop.explanation.analysis import Explanation, Subject, analyse
from puredrop.inspection.load import made
from puredrop.inspection.weights import load_weights
from puredrop.report.environment import environment

__all__ = ["Request", "execute", "prepare"]

_BUILT_IN = ("digits", "mnist")


@dataclass(frozen=True)
class Request:
    """What was asked for; the fields are the command's options.

    Args:
        model: "module:factory", a folder of Hugging Face's, or one of a finished run of compare.
        data: "digits", "mnist", or a .csv, .parquet or .npz file; None for the data of a run.
        weights: the model's state, for a factory.
        against: the state of the same model trained without dropout, or None.
        target, columns: of a file.
        task: "classification" or "regression"; None to infer it from the targets.
        data_dir: folder of MNIST's files.
        rows: at most so many are looked at.
        members: how many masks and members are run.
        seed: of masks and of the choice of rows.
        copy: of a run: which of its seeds.
        out: output folder.
    """

    model: str
    data: str | None
    weights: Path | None
    against: Path | None
    target: str | None
    columns: tuple[str, ...] | None
    task: Literal["classification", "regression"] | None
    data_dir: Path | None
    rows: int
    members: int
    seed: int
    copy: int
    out: Path | None


@dataclass(frozen=True)
class Job:
    """A network and its data, checked; nothing is written yet.

    Args:
        subject: of the page.
        folder: where it goes.
        facts: about the data, for the page's head.
    """

    subject: Subject
    folder: Path
    facts: tuple[str, ...]


def prepare(request: Request) -> Job:
    """Read model and data.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    for name, value, least in (("--rows", request.rows, 2), ("--members", request.members, 16)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise NotADirectoryError(f"--out is {str(request.out)!r}, which is a file; expected a folder or a new name")
    folder = Path(request.model)
    if (folder / "results.json").is_file():
        asked, where = _of_run(request, folder), folder
    elif folder.is_dir():
        asked, where = _of_hugging_face(request, folder), Path("runs") / f"{folder.name}-explain"
    else:
        asked, where = _of_factory(request), Path("runs") / f"{request.model.replace(':', '-')}-explain"
    asked = asked.fewer(request.rows)
    return Job(asked, request.out or where, _facts(request, asked))


def _of_run(request: Request, folder: Path) -> Subject:
    """Return a network of a finished run, with its undropped model, on the run's data."""
    for option in ("data", "weights", "against", "target", "columns", "task"):
        if getattr(request, option) is not None:
            name = "DATA" if option == "data" else f"--{option}"
            raise ValueError(f"{name} is given, but {folder} is a run of compare, which has its own; drop it")
    found, weights = weights_of(folder)
    identity = found["identity"]
    if not 0 <= request.copy < identity["seeds"]:
        raise ValueError(f"--copy is {request.copy}; expected 0 to {identity['seeds'] - 1}, the seeds of {folder}")
    options = options_of(identity, request.data_dir)
    data = data_of(options).to(torch.device("cpu"), getattr(torch, identity["dtype"]))
    if data.digest() != identity["data_digest"]:
        raise ValueError(f"{folder} is a run on other data than {identity['data']} holds now; run compare again")
    data, network, _ = network_of(options, data)
    epochs = found["arms"]["dropout"]["epochs"]
    return subject(data, network, weights, request.copy, epochs, request.members, request.seed)


def _of_factory(request: Request) -> Subject:
    model, _ = made(request.model)
    model.eval()
    if request.weights is None:
        print("no --weights: the model is taken as the factory makes it", file=sys.stderr)
    else:
        load_weights(model, request.weights, "--weights")
    undropped = None
    if request.against is not None:
        undropped, _ = made(request.model)
        load_weights(undropped.eval(), request.against, "--against")
    return replace(_on_data(request, model), undropped=undropped)


def _of_hugging_face(request: Request, folder: Path) -> Subject:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"MODEL {folder} is a folder; install what reads it with: pip install transformers") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (config.architectures or ["none"])[0])
        model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"MODEL {folder} is no finished run of compare, and Hugging Face cannot load it "
            f"({' '.join(str(error).split())[:160]}); expected config.json and model.safetensors"
        ) from error
    return _on_data(request, model.eval(), folder)


def _on_data(request: Request, model: Module, tokens: Path | None = None) -> Subject:
    """The model with the rows that were named."""
    if request.data is None:
        raise ValueError("DATA is missing; expected digits, mnist, or a .csv, .parquet or .npz file")
    common: dict[str, Any] = {"members": request.members, "seed": request.seed}
    if request.data in _BUILT_IN:
        data = load(request.data, request.data_dir)
        train, test = data.train, data.test
        return Subject(request.model, model, test.x, test.y, "classification", train.x, train.y, **common)
    path = Path(request.data)
    target = request.target or ("labels" if tokens else "y") if path.suffix == ".npz" else request.target
    if target is None:
        raise ValueError(f"--target is missing; expected the column of {request.data} to predict")
    x, y = read_rows(path, request.columns, target, named=tokens is not None)
    assert y is not None
    if isinstance(x, list):
        x = _tokens(tokens, x)
    if y.dtype.kind not in "fiub":
        raise ValueError(f"--target {target!r} holds {y.dtype}; expected numbers: of classes, their numbers from 0")
    task = request.task or ("regression" if y.dtype.kind == "f" else "classification")
    targets = torch.as_tensor(y.astype("int64" if task == "classification" else "float32"))
    rows = {name: torch.as_tensor(one) for name, one in x.items()} if isinstance(x, dict) else torch.as_tensor(x)
    return Subject(request.model, model, rows, targets, task, **common)


def _tokens(folder: Path | None, texts: list[str]) -> dict[str, Any]:
    if folder is None:
        raise ValueError("--columns names a column of text; expected numbers, or a folder of Hugging Face's as MODEL")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))


def _facts(request: Request, subject: Subject) -> tuple[str, ...]:
    count = sum(value.numel() for value in subject.model.parameters())
    facts = [f"{count:,} parameters", f"{len(subject.y)} rows"]
    if subject.train_y is not None:
        facts.append(f"{len(subject.train_y)} training rows for the penalty, gradient and BatchNorm")
    if request.data is not None:
        facts.insert(0, Path(request.data).name)
    return tuple(facts)


def execute(job: Job, line: list[str]) -> tuple[Explanation, Path]:
    """Measure, and write explain.html and explain.json.

    Args:
        job: as prepared.
        line: the command's arguments, for the page.
    """
    is_terminal = sys.stderr.isatty()

    def on_stage(question: str) -> None:
        print(f"\r\033[K{question}" if is_terminal else question, end="" if is_terminal else "\n", file=sys.stderr)

    found = analyse(job.subject, on_stage)
    if is_terminal:
        print("\r\033[K", end="", file=sys.stderr)
    seen = {**environment(), "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    command = f"puredrop {shlex.join(line)}"
    record = {"name": found.name, "facts": job.facts, "command": command, "environment": seen, **found.to_dict()}
    job.folder.mkdir(parents=True, exist_ok=True)
    write(job.folder / "explain.json", json.dumps(record, indent=1).encode())
    found.save(job.folder / "explain.html", facts=job.facts, command=command)
    return found, job.folder / "explain.html"
