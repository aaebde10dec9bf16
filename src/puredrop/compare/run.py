"""One run of `compare`: checked first, then trained, measured and written; resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from puredrop._files import (
    load_checkpoint,
    remove_interrupted,
    save_checkpoint,
    write_json,
    write_page,
    write_tensors,
)
from puredrop._folders import check_output_folder, check_unlocked, output_folder
from puredrop._text import first_line, one_line
from puredrop.compare import page, results
from puredrop.compare.copies import copy_of_run
from puredrop.compare.data import Data, load
from puredrop.compare.evaluation import NETWORKS, Evaluation, check_memory, evaluate, evaluate_members
from puredrop.compare.network import Model, Network, Parameters
from puredrop.compare.options import CompareOptions
from puredrop.compare.processes import Worker, this_worker
from puredrop.compare.sweep import Sweep, sweep_record
from puredrop.compare.tensorboard import TensorBoardLog
from puredrop.compare.training import Arm, train
from puredrop.explanation.analysis import Explanation, analyse
from puredrop.report.environment import environment

__all__ = ["Comparison", "load_data", "make_network", "prepare"]

_EPOCHS = {"digits": 60, "mnist": 20}
_EPOCHS_OF_A_TABLE = 40
_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_DROPPING = ("dropout", "batchwise", "sweep")
_EXPLAINED_ROWS = 1024


@dataclass
class Comparison:
    """A run that has passed every check and written nothing yet.

    Args:
        folder: the folder of its files.
        data: the rows.
        network: the shape of the network.
        identity: what must be equal for two runs to give the same numbers.
        arms: by name, the arms whose training has begun.
        finished: the results, where the folder already holds them.
        log: the log of losses for TensorBoard, if one is written.
        worker: this process among those that torchrun started; the first measures and writes.
    """

    folder: Path
    data: Data
    network: Model
    identity: dict[str, Any]
    arms: dict[str, Arm] = field(default_factory=dict)
    finished: dict[str, Any] | None = None
    log: TensorBoardLog | None = None
    worker: Worker = field(default_factory=Worker)
    _saved_at: float = 0.0

    @property
    def epochs(self) -> int:
        """Return the largest number of epochs of an arm."""
        epochs: int = self.identity["epochs"]
        return epochs

    @property
    def checkpoint(self) -> Path:
        """Return the file that makes an unfinished run resumable."""
        return self.folder / "checkpoint.safetensors"

    def execute(
        self,
        on_epoch: Callable[[str, Arm], None] = lambda name, arm: None,
        on_measure: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Train to the end, measure, and write results, page and weights.

        Args:
            on_epoch: called with the arm's name and the arm after each epoch.
            on_measure: called when training has ended and measuring begins.

        Returns:
            The results, as in results.json; an empty dict on a process that is not the first.
        """
        if self.finished is not None:
            return self.finished
        self.worker.wait()
        if self.worker.rank > 0:
            self._train(on_epoch)
            self.worker.wait()
            return {}
        with output_folder(self.folder):
            if self.checkpoint.exists() and not self.arms:  # of another run, which was killed since `prepare`
                raise _unfinished(self.folder)
            return self._complete(on_epoch, on_measure)

    def _complete(self, on_epoch: Callable[[str, Arm], None], on_measure: Callable[[], None]) -> dict[str, Any]:
        """Do what the first process does, in a folder that no other run writes to."""
        self._train(on_epoch)
        self.worker.wait()
        if self.log is not None:
            self.log.close()
        on_measure()
        record = self._record()
        self._write(record)
        return record

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the names of what is trained: the arms, and the sweep of rates."""
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
                if self.log is not None:
                    self.log.write(name, arm)
                if time.monotonic() - self._saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()

            worker = self.worker if model.splits else None
            train(self.arms[name], model, self.data, seeds, self.epochs, after, worker)
            self._save()

    def _seeds(self, name: str) -> Sequence[int]:
        """Return an arm's seeds; the arm networks has four further seeds for each seed of the arm none."""
        count = self.identity["seeds"]
        if name == "sweep":
            return list(range(count)) * len(self.identity["sweep"])
        return range(count, NETWORKS * count) if name == "networks" else range(count)

    def _save(self) -> None:
        if self.worker.rank > 0:
            return
        tensors = {f"{name}/{key}": v for name, arm in self.arms.items() for key, v in arm.tensors().items()}
        state = {
            "identity": self.identity,
            "threads": torch.get_num_threads(),
            "arms": {name: arm.state() for name, arm in self.arms.items()},
        }
        save_checkpoint(self.checkpoint, tensors, state)
        self._saved_at = time.monotonic()

    def _record(self) -> dict[str, Any]:
        """Measure everything and return it as JSON holds it."""
        evaluations = {name: self._evaluate(name) for name in self.identity["arms"]}
        members = evaluate_members(self.arms["dropout"].best, self.network, self.data)
        return {
            "format": results.FORMAT,
            "name": self.data.name,
            "identity": self.identity,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
            "notes": list(self.data.notes),
            "rows": {name: len(getattr(self.data, name).y) for name in ("train", "validation", "test")},
            "arms": {
                name: results.arm_record(arm, evaluations[name], members if name == "dropout" else None, self.data.task)
                for name, arm in self.arms.items()
                if name in evaluations
            },
            "members_needed": results.members_needed(evaluations["dropout"], members),
            "differences": results.differences(evaluations, members, self.data.task),
            "explanation": self._explanation(),
            "sweep": self._sweep_record(),
        }

    def _explanation(self) -> dict[str, Any]:
        """Return what `explain` says of the first seed's network, or why the network cannot be analysed."""
        weights = {name: self.arms[name].best for name in ("none", "dropout")}
        subject = copy_of_run(self.data, self.network, weights, 0, self.arms["dropout"].epoch)
        try:
            return analyse(subject.fewer(_EXPLAINED_ROWS), exclude=("one-pass", "uncertainty")).to_dict()
        except (TypeError, ValueError) as error:
            return Explanation("", (), (), {"model": one_line(error, (TypeError, ValueError))}).to_dict()

    def _sweep_record(self) -> dict[str, Any] | None:
        if "sweep" not in self.arms:
            return None
        sweep, arm = self._model("sweep"), self.arms["sweep"]
        assert isinstance(sweep, Sweep)
        return sweep_record(sweep, arm.best, self.data, sum(arm.seconds))

    def _evaluate(self, name: str) -> Evaluation:
        if name != "networks":
            return evaluate(self.arms[name].best, self.network, self.data)
        networks, count = self.arms[name].best, self.identity["seeds"]
        sets: list[Parameters] = [
            {key: value[first : first + count] for key, value in networks.items()}
            for first in range(0, (NETWORKS - 1) * count, count)
        ]
        return evaluate(self.arms["none"].best, self.network, self.data, *sets)

    def _write(self, record: dict[str, Any]) -> None:
        for name in self.identity["arms"]:
            weights = {key: value.detach().cpu().contiguous() for key, value in self.arms[name].best.items()}
            write_tensors(self._weights(name), weights)
        write_page(self.folder / "report.html", page.render(record))
        write_json(self.folder / "results.json", record)
        remove_interrupted(
            self.checkpoint, self.folder / "report.html", self.folder / "results.json",
            *map(self._weights, self.identity["arms"]),
        )  # fmt: skip
        self.checkpoint.unlink(missing_ok=True)  # last: until here a kill leaves a run that resumes

    def _weights(self, name: str) -> Path:
        return self.folder / f"weights-{name}.safetensors"


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
    data = load_data(options).to(_device(options.device), getattr(torch, options.dtype))
    check_memory(data.task, len(data.test.x), options.seeds)
    data, network, model_digest = make_network(options, data)
    identity = {
        "data": options.data,
        "data_digest": data.digest(),  # before the options: refused by name first, where the rows differ
        **options.identity(),
        "task": data.task.name,
        "model_digest": model_digest,
        "epochs": options.epochs or _EPOCHS.get(options.data, _EPOCHS_OF_A_TABLE),
        "torch": torch.__version__,
    }
    run = Comparison(options.out or Path("runs") / data.name, data, network, identity, worker=this_worker())
    if options.seeds < run.worker.size:
        raise ValueError(f"--seeds is {options.seeds}, fewer than the {run.worker.size} processes that train them")
    check_output_folder(run.folder)
    check_unlocked(run.folder)
    run.log = TensorBoardLog(run.folder / "tensorboard") if options.tensorboard and run.worker.rank == 0 else None
    if not run.checkpoint.exists():
        run.finished = _finished(run) if options.resume else None
        return run
    if not options.resume:
        raise _unfinished(run.folder)
    _resume(run)
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


def load_data(options: CompareOptions) -> Data:
    """Read the rows that options name."""
    if not options.is_table:
        return load(options.data, options.data_dir, options.rows)
    from puredrop.compare.tables import TableOptions, load_table

    assert options.target is not None
    table = TableOptions(options.target, options.task, options.group, options.time, options.split_seed, options.rows)
    return load_table(Path(options.data), table)


def make_network(options: CompareOptions, data: Data) -> tuple[Data, Model, str | None]:
    """Return the data with notes on the model, the model, and a hash of a user's model; None for the built-in one."""
    if options.model is None:
        sizes = (data.train.x.shape[1], *options.hidden, data.task.outputs)
        return data, Network(sizes, options.rates, options.input_rate), None
    from puredrop.compare.models import load_model

    model, notes = load_model(options.model, data, options.groups_used)
    return replace(data, notes=(*data.notes, *notes)), model, model.digest()


def _unfinished(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds an unfinished run; add --resume to go on with it, or choose another --out")


def _resume(run: Comparison) -> None:
    """Restore the arms of an unfinished run."""
    tensors, state = load_checkpoint(run.checkpoint)
    try:
        identity, threads, arms = dict(state["identity"]), int(state["threads"]), dict(state["arms"])
    except (LookupError, TypeError, ValueError) as error:
        raise _corrupt(run.checkpoint, error) from error
    for name, value in run.identity.items():
        if identity.get(name) != value:
            raise ValueError(
                f"--resume: {name} is {value}, but the unfinished run in {run.folder} has "
                f"{identity.get(name)}; make them equal, or choose another --out"
            )
    try:
        # Sums over other numbers of threads round differently, and a resumed run ends with the same bits.
        torch.set_num_threads(threads)
        for name, arm in arms.items():
            prefix = f"{name}/"
            of_arm = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
            run.arms[name] = Arm.restore(of_arm, arm, run.data.train.x.device)
    except (LookupError, TypeError, RuntimeError) as error:
        raise _corrupt(run.checkpoint, error) from error


def _corrupt(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is corrupt ({type(error).__name__}: {error}); delete it to start again")


def _finished(run: Comparison) -> dict[str, Any] | None:
    """Return the results of the same run, where the folder holds them."""
    path = run.folder / "results.json"
    if not path.exists():
        return None
    record = results.load_results(path)
    return record if record.get("identity") == run.identity else None
