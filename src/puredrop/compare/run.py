"""One run of `compare`: checked first, then trained, measured and written; resumable at any moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from puredrop import _files as files
from puredrop._text import first_line
from puredrop.compare import report, results
from puredrop.compare.board import Board
from puredrop.compare.data import Data, load
from puredrop.compare.measure import NETWORKS, Measured, ensemble, measure
from puredrop.compare.network import Model, Network, Parameters
from puredrop.compare.options import CompareOptions
from puredrop.compare.share import Share, joined
from puredrop.compare.subject import subject
from puredrop.compare.sweep import Sweep, swept
from puredrop.compare.training import Arm, train
from puredrop.explanation.analysis import Explanation, analyse
from puredrop.report.environment import environment

__all__ = ["Comparison", "data_of", "environment", "network_of", "prepare"]

_EPOCHS = {"digits": 60, "mnist": 20}
_EPOCHS_OF_A_TABLE = 40
_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_DROPPING = ("dropout", "batchwise", "sweep")
_ROWS = 1024  # that explain looks at


@dataclass
class Comparison:
    """A run that has passed every check and written nothing yet.

    Args:
        folder: where its files go.
        data: the rows.
        network: its shape.
        identity: what must be equal for two runs to give the same numbers.
        arms: by name, those begun.
        finished: the results, where the folder already holds them.
        board: where losses go for TensorBoard, if anywhere.
        share: which of the processes that torchrun started this is; the first measures and writes.
    """

    folder: Path
    data: Data
    network: Model
    identity: dict[str, Any]
    arms: dict[str, Arm] = field(default_factory=dict)
    finished: dict[str, Any] | None = None
    board: Board | None = None
    share: Share = field(default_factory=Share)
    _saved_at: float = 0.0

    @property
    def epochs(self) -> int:
        """At most so many for each arm."""
        epochs: int = self.identity["epochs"]
        return epochs

    @property
    def checkpoint(self) -> Path:
        """The file that makes an unfinished run resumable."""
        return self.folder / "checkpoint.safetensors"

    def execute(
        self,
        on_epoch: Callable[[str, Arm], None] = lambda name, arm: None,
        on_measure: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Train what is left, measure, and write results, page and weights.

        Args:
            on_epoch: called with the arm's name after each epoch.
            on_measure: called when training is done and measuring begins.

        Returns:
            The results, as in results.json; nothing on a process that is not the first.
        """
        if self.finished is not None:
            return self.finished
        self.share.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._train(on_epoch)
        self.share.wait()
        if self.share.rank > 0:
            return {}
        if self.board is not None:
            self.board.close()
        on_measure()
        found = self._measured()
        self._write(found)
        return found

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of what is trained: the arms, and the sweep of rates."""
        return (*self.identity["arms"], *(["sweep"] if self.identity["sweep"] else []))

    def _model(self, name: str) -> Model:
        if name != "sweep":
            return self.network
        assert isinstance(self.network, Network)
        return Sweep(self.network, tuple(self.identity["sweep"]))

    def _train(self, on_epoch: Callable[[str, Arm], None]) -> None:
        for name in self.trained:
            seeds, model = self._seeds(name), self._model(name)
            if name not in self.arms:
                groups = self.identity["groups"] if name == "batchwise" else None
                like = self.data.train.x
                self.arms[name] = Arm.start(model, seeds, like, dropout=name in _DROPPING, groups=groups)
                self._save()

            def after(arm: Arm, name: str = name) -> None:
                on_epoch(name, arm)
                if self.board is not None:
                    self.board.write(name, arm)
                if time.monotonic() - self._saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()

            share = self.share if model.splits else None
            train(self.arms[name], model, self.data, seeds, self.epochs, after, share)
            self._save()

    def _seeds(self, name: str) -> Sequence[int]:
        """Those of an arm: of networks, numbers of their own, four to go with each network of the arm none."""
        count = self.identity["seeds"]
        if name == "sweep":
            return list(range(count)) * len(self.identity["sweep"])
        return range(count, NETWORKS * count) if name == "networks" else range(count)

    def _save(self) -> None:
        if self.share.rank > 0:
            return
        tensors = {f"{name}/{key}": v for name, arm in self.arms.items() for key, v in arm.tensors().items()}
        state = {
            "identity": self.identity,
            "threads": torch.get_num_threads(),
            "arms": {name: arm.state() for name, arm in self.arms.items()},
        }
        files.save_checkpoint(self.checkpoint, tensors, state)
        self._saved_at = time.monotonic()

    def _measured(self) -> dict[str, Any]:
        measured = {name: self._measure(name) for name in self.identity["arms"]}
        members = ensemble(self.arms["dropout"].best, self.network, self.data)
        return {
            "schema": results.SCHEMA,
            "name": self.data.name,
            "identity": self.identity,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
            "notes": list(self.data.notes),
            "rows": {name: len(getattr(self.data, name).y) for name in ("train", "validation", "test")},
            "arms": {
                name: results.arm_record(arm, measured[name], members if name == "dropout" else None, self.data.task)
                for name, arm in self.arms.items()
                if name in measured
            },
            "samples": results.samples(measured["dropout"], members),
            "differences": results.differences(measured, members, self.data.task),
            "account": self._account(),
            "sweep": self._swept(),
        }

    def _account(self) -> dict[str, Any]:
        """What `explain` says of the first seed's network, or why it cannot look into it."""
        weights = {name: self.arms[name].best for name in ("none", "dropout")}
        asked = subject(self.data, self.network, weights, 0, self.arms["dropout"].epoch)
        try:
            return analyse(asked.fewer(_ROWS), exclude=("one-pass", "uncertainty")).to_dict()
        except (TypeError, ValueError) as error:
            return Explanation("", (), (), {"model": " ".join(str(error).split())}).to_dict()

    def _swept(self) -> dict[str, Any] | None:
        if "sweep" not in self.arms:
            return None
        sweep, arm = self._model("sweep"), self.arms["sweep"]
        assert isinstance(sweep, Sweep)
        return swept(sweep, arm.best, self.data, sum(arm.seconds))

    def _measure(self, name: str) -> Measured:
        if name != "networks":
            return measure(self.arms[name].best, self.network, self.data)
        others, count = self.arms[name].best, self.identity["seeds"]
        sets: list[Parameters] = [
            {key: value[first : first + count] for key, value in others.items()}
            for first in range(0, (NETWORKS - 1) * count, count)
        ]
        return measure(self.arms["none"].best, self.network, self.data, *sets)

    def _write(self, found: dict[str, Any]) -> None:
        for name in self.identity["arms"]:
            arm = self.arms[name]
            weights = {key: value.detach().cpu().contiguous() for key, value in arm.best.items()}
            files.write(self.folder / f"weights-{name}.safetensors", safetensors.torch.save(weights))
        files.write(self.folder / "report.html", report.render(found).encode())
        files.write(self.folder / "results.json", json.dumps(found, indent=1).encode())
        self.checkpoint.unlink()  # last: until here a kill leaves a run that resumes


def prepare(options: CompareOptions) -> Comparison:
    """Check everything that can be wrong before the first byte is written.

    Args:
        options: what the user asked for.

    Returns:
        The run, resumed from its checkpoint where that was asked for and there is one.

    Raises:
        ValueError, OSError: with one line that names the option or file, its value, and what was expected.
    """
    options.check()
    data = data_of(options).to(_device(options.device), getattr(torch, options.dtype))
    data, network, model_digest = network_of(options, data)
    identity = {
        "data": options.data,
        "data_digest": data.digest(),
        "task": data.task.name,
        "target": options.target,
        "group": options.group,
        "time": options.time,
        "split_seed": options.split_seed,
        "model": options.model,
        "model_digest": model_digest,
        "device": options.device,
        "dtype": options.dtype,
        "hidden": list(options.hidden) if options.model is None else None,
        "rates": list(options.rates) if options.model is None else None,
        "input_rate": options.input_rate if options.model is None else None,
        "epochs": options.epochs or _EPOCHS.get(options.data, _EPOCHS_OF_A_TABLE),
        "seeds": options.seeds,
        "rows": options.rows,
        "arms": list(options.arms),
        "groups": options.groups_used,
        "sweep": list(options.sweep),
        "torch": torch.__version__,
    }
    run = Comparison(options.out or Path("runs") / data.name, data, network, identity, share=joined())
    if options.seeds < run.share.size:
        raise ValueError(f"--seeds is {options.seeds}, fewer than the {run.share.size} processes that train them")
    _check_folder(run.folder)
    run.board = Board(run.folder / "tensorboard") if options.tensorboard and run.share.rank == 0 else None
    if not run.checkpoint.exists():
        run.finished = _finished(run) if options.resume else None
        return run
    if not options.resume:
        raise ValueError(
            f"{run.folder} holds an unfinished run; add --resume to go on with it, or choose another --out"
        )
    _load(run)
    return run


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch says a paragraph; its first sentence is the reason.
        reason = first_line(error).split(". ")[0][:100]
        raise ValueError(f"--device is {name!r}, which is not usable here ({reason}); expected cpu or cuda") from error
    return device


def data_of(options: CompareOptions) -> Data:
    """The rows that options name."""
    if not options.is_table:
        return load(options.data, options.data_dir, options.rows)
    from puredrop.compare.tables import TableOptions, load_table

    assert options.target is not None
    table = TableOptions(options.target, options.task, options.group, options.time, options.split_seed, options.rows)
    return load_table(Path(options.data), table)


def network_of(options: CompareOptions, data: Data) -> tuple[Data, Model, str | None]:
    """The data with notes on the model, the model, and a hash of it where it is the user's."""
    if options.model is None:
        sizes = (data.train.x.shape[1], *options.hidden, data.task.outputs)
        return data, Network(sizes, options.rates, options.input_rate), None
    from puredrop.compare.models import load_model

    model, notes = load_model(options.model, data, options.groups_used)
    return replace(data, notes=(*data.notes, *notes)), model, model.digest()


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out is {str(folder)!r}, which is a file; expected a folder or a new name")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"--out is {str(folder)!r}, but {parent} is not writable")


def _load(run: Comparison) -> None:
    tensors, state = files.load_checkpoint(run.checkpoint)
    for name, value in run.identity.items():
        if state["identity"].get(name) != value:
            raise ValueError(
                f"--resume: {name} is {value}, but the unfinished run in {run.folder} has "
                f"{state['identity'].get(name)}; make them equal, or choose another --out"
            )
    # Sums over other numbers of threads round differently, and a resumed run ends with the same bits.
    torch.set_num_threads(state["threads"])
    for name, arm in state["arms"].items():
        own = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
        run.arms[name] = Arm.restore(own, arm, run.data.train.x.device)


def _finished(run: Comparison) -> dict[str, Any] | None:
    path = run.folder / "results.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is corrupt ({error}); delete it to start again") from error
    return found if found.get("identity") == run.identity else None
