"""The work of `puredrop explain`: a user's trained network, or one of a finished run of compare, analysed."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import Module

from puredrop._files import read_tensors, remove_interrupted, write_json
from puredrop._folders import check_output_folder, check_unlocked, output_folder
from puredrop.cli.progress import progress
from puredrop.cli.requests import ExplainRequest
from puredrop.cli.rows_file import read_rows
from puredrop.compare.copies import copy_of_run
from puredrop.compare.data import load
from puredrop.compare.network import Parameters
from puredrop.compare.options import CompareOptions
from puredrop.compare.results import load_results
from puredrop.compare.run import load_data, make_network
from puredrop.explanation.analysis import Explanation, Subject, analyse
from puredrop.inspection.load import make_model
from puredrop.inspection.weights import load_weights
from puredrop.report.environment import environment

__all__ = ["ExplainJob", "execute", "prepare"]

_FORMAT = 1  # of explain.json
_BUILT_IN = ("digits", "mnist")


@dataclass(frozen=True)
class ExplainJob:
    """A network and its data, checked; nothing is written yet.

    Args:
        subject: the network and its rows.
        folder: the folder that the page is written to.
        facts: short texts about the data, for the page's head.
    """

    subject: Subject
    folder: Path
    facts: tuple[str, ...]


def prepare(request: ExplainRequest) -> ExplainJob:
    """Read model and data.

    Raises:
        ValueError, OSError: with one line that names what is wrong.
    """
    for name, value, least in (("--rows", request.rows, 2), ("--members", request.members, 16)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    folder = Path(request.model)
    out = request.out or _default_folder(request, folder)
    check_output_folder(out)
    check_unlocked(out)
    if (folder / "results.json").is_file():
        subject = _of_run(request, folder)
    elif folder.is_dir():
        subject = _of_hugging_face(request, folder)
    else:
        subject = _of_factory(request)
    subject = subject.fewer(request.rows)
    return ExplainJob(subject, out, _facts(request, subject))


def _default_folder(request: ExplainRequest, folder: Path) -> Path:
    if (folder / "results.json").is_file():
        return folder
    return Path("runs") / f"{folder.name if folder.is_dir() else request.model.replace(':', '-')}-explain"


def _of_run(request: ExplainRequest, folder: Path) -> Subject:
    """Take one network out of a finished run, with its undropped model, on the run's data."""
    for option in ("data", "weights", "against", "target", "columns", "task"):
        if getattr(request, option) is not None:
            name = "DATA" if option == "data" else f"--{option}"
            raise ValueError(f"{name} is given, but {folder} is a run of compare, which has its own; drop it")
    results, weights = load_results(folder / "results.json"), _weights(folder)
    identity = results["identity"]
    if not 0 <= request.copy < identity["seeds"]:
        raise ValueError(f"--copy is {request.copy}; expected 0 to {identity['seeds'] - 1}, the seeds of {folder}")
    options = CompareOptions.from_identity(identity, request.data_dir)
    data = load_data(options).to(torch.device("cpu"), getattr(torch, identity["dtype"]))
    if data.digest() != identity["data_digest"]:
        raise ValueError(f"{folder} is a run on other data than {identity['data']} holds now; run compare again")
    data, network, _ = make_network(options, data)
    epochs = results["arms"]["dropout"]["epochs"]
    return copy_of_run(data, network, weights, request.copy, epochs, request.members, request.seed)


def _weights(folder: Path) -> dict[str, Parameters]:
    """Read the weights of a run's arms with and without dropout."""
    return {
        name: read_tensors(folder / f"weights-{name}.safetensors", "run compare again") for name in ("none", "dropout")
    }


def _of_factory(request: ExplainRequest) -> Subject:
    model, _ = make_model(request.model)
    model.eval()
    if request.weights is None:
        print("no --weights: the model is taken as the factory makes it", file=sys.stderr)
    else:
        load_weights(model, request.weights, "--weights")
    undropped = None
    if request.against is not None:
        undropped, _ = make_model(request.model)
        load_weights(undropped.eval(), request.against, "--against")
    return replace(_on_data(request, model), undropped=undropped)


def _of_hugging_face(request: ExplainRequest, folder: Path) -> Subject:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"MODEL {folder} is a folder; install what reads it with: pip install transformers") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_kernels(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        architecture = (config.architectures or ["none"])[0]
        kind = getattr(transformers, architecture)
        # A folder names any class that it likes: an Auto class or a pipeline would choose what to run once more.
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise ValueError(f"architecture {architecture!r} is no model of transformers")
        model = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"MODEL {folder} is no finished run of compare, and Hugging Face cannot load it "
            f"({' '.join(str(error).split())[:160]}); expected config.json and model.safetensors"
        ) from error
    return _on_data(request, model.eval(), folder)


def _check_kernels(config: Any) -> None:
    """Raise ValueError if a configuration names a kernel of the Hub, which is code that transformers would download."""
    if isinstance(config, dict):
        for name, value in config.items():
            values = value.values() if isinstance(value, dict) else [value]
            if "implementation" in name and any("/" in str(item) for item in values):
                raise ValueError(f"config.json names a kernel of the Hub, {name} {value!r}; remove that line")
            _check_kernels(value)


def _on_data(request: ExplainRequest, model: Module, folder: Path | None = None) -> Subject:
    """Join the model with the rows that DATA names; `folder` holds the tokenizer of a Hugging Face model."""
    if request.data is None:
        raise ValueError("DATA is missing; expected digits, mnist, or a .csv, .parquet or .npz file")
    common: dict[str, Any] = {"members": request.members, "seed": request.seed}
    if request.data in _BUILT_IN:
        data = load(request.data, request.data_dir)
        train, test = data.train, data.test
        return Subject(request.model, model, test.x, test.y, "classification", train.x, train.y, **common)
    path = Path(request.data)
    target = request.target or ("labels" if folder else "y") if path.suffix == ".npz" else request.target
    if target is None:
        raise ValueError(f"--target is missing; expected the column of {request.data} to predict")
    x, y = read_rows(path, request.columns, target, named=folder is not None)
    assert y is not None
    if isinstance(x, list):
        x = _tokens(folder, x)
    if y.dtype.kind not in "fiub":
        raise ValueError(f"--target {target!r} holds {y.dtype}; expected numbers: of classes, their numbers from 0")
    task = request.task or ("regression" if y.dtype.kind == "f" else "classification")
    targets = torch.as_tensor(y.astype("int64" if task == "classification" else "float32"))
    rows = {name: torch.as_tensor(array) for name, array in x.items()} if isinstance(x, dict) else torch.as_tensor(x)
    return Subject(request.model, model, rows, targets, task, **common)


def _tokens(folder: Path | None, texts: list[str]) -> dict[str, Any]:
    if folder is None:
        raise ValueError("--columns names a column of text; expected numbers, or a folder of Hugging Face's as MODEL")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))


def _facts(request: ExplainRequest, subject: Subject) -> tuple[str, ...]:
    count = sum(value.numel() for value in subject.model.parameters())
    facts = [f"{count:,} parameters", f"{len(subject.y)} rows"]
    if subject.train_y is not None:
        facts.append(f"{len(subject.train_y)} training rows for the penalty, gradient and BatchNorm")
    if request.data is not None:
        facts.insert(0, Path(request.data).name)
    return tuple(facts)


def execute(job: ExplainJob, line: list[str]) -> tuple[Explanation, Path]:
    """Analyse the network, and write explain.html and explain.json.

    Args:
        job: as prepared.
        line: the command's arguments, for the page.

    Returns:
        The analysis, and the page's path.
    """
    with output_folder(job.folder):
        return _execute(job, line)


def _execute(job: ExplainJob, line: list[str]) -> tuple[Explanation, Path]:
    console = Console(stderr=True)
    with progress(console, "questions", transient=True) as display:
        bar = display.add_task("explain", total=None, note="")

        def on_question(question: str) -> None:
            display.update(bar, note=question)
            if not console.is_terminal:
                print(question, file=sys.stderr)

        explanation = analyse(job.subject, on_question)
    created = {**environment(), "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    command = f"puredrop {shlex.join(line)}"
    record = {
        "format": _FORMAT, "name": explanation.name, "facts": job.facts, "command": command, "environment": created,
        **explanation.to_dict(),
    }  # fmt: skip
    numbers, page = job.folder / "explain.json", job.folder / "explain.html"
    write_json(numbers, record)
    explanation.save(page, facts=job.facts, command=command)
    remove_interrupted(numbers, page)
    return explanation, page
