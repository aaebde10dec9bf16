"""Options of `compare`, and the checks that refuse a value before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from puredrop._options import flag, names, numbers, option, rate_range
from puredrop.compare.data import SUFFIXES
from puredrop.compare.training import BATCH

__all__ = ["ARMS", "CompareOptions"]

ARMS = ("none", "dropout", "batchwise", "networks")
"""Names of the arms, in the order of training; the first two are always trained."""
GROUPS = 4
_DATA, _TRAINING = "data", "network and training"  # headings in --help
_OF_A_TABLE = ("target", "task", "group", "time", "split_seed")
_OF_THE_BUILT_IN = ("hidden", "rates", "input_rate")
_WITHOUT_EFFECT = ("data_dir", "out", "tensorboard", "resume")  # on the numbers
_MOST_RATES = 20


@dataclass(frozen=True)
class CompareOptions:
    """Options of `puredrop compare`: each field is one, and its help says what it means."""

    data: str = option(
        "digits", "digits (default), mnist, or a .csv, .parquet or .npz file", group=_DATA, positional=True, nargs="?",
        metavar="DATA",
    )  # fmt: skip
    data_dir: Path | None = option(
        None, "folder of MNIST's four IDX files (.gz), else they are downloaded", group=_DATA, type=Path, metavar="DIR"
    )
    target: str | None = option(None, "of a file: the column to predict", group=_DATA, metavar="COLUMN")
    task: str | None = option(
        None, "of a file: the task, else inferred and printed", group=_DATA, choices=("classification", "regression")
    )
    group: str | None = option(
        None, "of a file: keep rows with one value of this column in one part of the split", group=_DATA,
        metavar="COLUMN",
    )  # fmt: skip
    time: str | None = option(
        None, "of a file: order the rows by this column; the last fifth is the test", group=_DATA, metavar="COLUMN"
    )
    split_seed: int = option(0, "of a file: which random split (default: 0)", group=_DATA, type=int, metavar="N")
    rows: int | None = option(
        None, "use only so many rows for training and validation", group=_DATA, type=int, metavar="N"
    )
    model: str | None = option(
        None, "your own network: the module is imported and runs, and its function makes an nn.Module", group=_TRAINING,
        metavar="MODULE:FACTORY",
    )  # fmt: skip
    hidden: tuple[int, ...] = option(
        (512, 256), "widths of the hidden layers (default: 512,256)", group=_TRAINING, type=numbers(int, "512,256"),
        metavar="N,N",
    )  # fmt: skip
    rates: tuple[float, ...] = option(
        (0.5, 0.3), "drop probability after each (default: 0.5,0.3)", group=_TRAINING, type=numbers(float, "0.5,0.3"),
        metavar="P,P",
    )  # fmt: skip
    input_rate: float = option(
        0.0, "drop probability of the features (default: 0)", group=_TRAINING, type=float, metavar="P"
    )
    epochs: int | None = option(
        None, "at most so many (default: 60 for digits, 20 for mnist, 40 for a file)", group=_TRAINING, type=int,
        metavar="N",
    )  # fmt: skip
    device: str = option("cpu", "where to train: cpu (default) or cuda", group=_TRAINING)
    dtype: str = option("float32", "default: float32", group=_TRAINING, choices=("float32", "float64"))
    arms: tuple[str, ...] = option(
        ARMS[:2], "none,dropout (default), and more: batchwise (groups of rows share masks), networks (mean of five)",
        group=_TRAINING, type=names, metavar="A,A",
    )  # fmt: skip
    groups: int | None = option(
        None, "of batchwise: groups of a batch (default: 4)", group=_TRAINING, type=int, metavar="N"
    )
    sweep: tuple[float, ...] = option(
        (), "train at these rates, too, all seeds of all rates together, and say which are best: 0:0.8:0.1",
        group=_TRAINING, type=rate_range, metavar="A:B:STEP",
    )  # fmt: skip
    seeds: int = option(10, "seeds trained together (default: 10)", group=_TRAINING, type=int, metavar="N")
    out: Path | None = option(None, "output folder (default: runs/NAME)", type=Path, metavar="DIR")
    tensorboard: bool = option(False, "write losses for TensorBoard to DIR/tensorboard")
    resume: bool = option(False, "go on with the unfinished run in the output folder")

    def identity(self) -> dict[str, Any]:
        """Return the options that two runs must share to give the same numbers, as JSON holds them."""
        shared = {name: value for name, value in vars(self).items() if name not in _WITHOUT_EFFECT}
        if self.model is not None:
            shared |= dict.fromkeys(_OF_THE_BUILT_IN)
        lists = {name: list(value) for name, value in shared.items() if isinstance(value, tuple)}
        return {**shared, **lists, "groups": self.groups_used}

    @staticmethod
    def from_identity(identity: Mapping[str, Any], data_dir: Path | None) -> CompareOptions:
        """Return the options of a finished run, as far as its data and its network go."""
        names = ["data", "target", "group", "time", "split_seed", "model", "rows"]
        names += ["task"] if identity["target"] is not None else []
        names += _OF_THE_BUILT_IN if identity["model"] is None else []
        values = {name: identity[name] for name in names}
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return CompareOptions(data_dir=data_dir, **{**values, **tuples})

    @property
    def is_table(self) -> bool:
        """Return whether the data are a file of the user's."""
        return Path(self.data).suffix in SUFFIXES

    @property
    def groups_used(self) -> int | None:
        """Return the groups of a batch in the arm batchwise; None where that arm is not trained."""
        return (self.groups or GROUPS) if "batchwise" in self.arms else None

    def check(self) -> None:
        """Raise ValueError, naming the option, for values that cannot be run."""
        if self.is_table and self.target is None:
            raise ValueError(f"--target is missing; expected the column of {self.data} to predict")
        self._check_use(
            (*_OF_THE_BUILT_IN, "sweep"), self.model is None, "is for the built-in network, but --model is given"
        )
        self._check_use(_OF_A_TABLE, self.is_table, f"is for a table, but data is {self.data!r}")
        self._check_use(("data_dir",), not self.is_table, f"is for MNIST, but data is {self.data!r}")
        if self.group is not None and self.time is not None:
            raise ValueError("--group and --time are given; expected one way to split the rows")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"--hidden is {_list(self.hidden)}; expected widths of at least 1, such as 512,256")
        if len(self.rates) != len(self.hidden):
            raise ValueError(
                f"--rates has {len(self.rates)} entries ({_list(self.rates)}), --hidden has {len(self.hidden)} "
                f"({_list(self.hidden)}); give one rate per hidden layer"
            )
        for name, rate in [*(("--rates", rate) for rate in self.rates), ("--input-rate", self.input_rate)]:
            if not 0 <= rate < 1:
                raise ValueError(f"{name} holds {rate}; expected rates in [0, 1), the share of units dropped")
        if not any((*self.rates, self.input_rate)):
            raise ValueError(
                "--rates and --input-rate are all 0; expected at least one above 0, or there is no dropout"
            )
        self._check_sweep()
        if self.arms[:2] != ARMS[:2] or self.arms != tuple(name for name in ARMS if name in self.arms):
            raise ValueError(
                f"--arms is {_list(self.arms)}; expected {_list(ARMS[:2])}, and then, in this order, any of "
                f"{_list(ARMS[2:])}"
            )
        self._check_use(("groups",), "batchwise" in self.arms, "is for the arm batchwise, which --arms does not name")
        if self.groups is not None and not 1 <= self.groups <= BATCH:
            raise ValueError(f"--groups is {self.groups}; expected 1 to {BATCH}, the rows of a batch")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"--epochs is {self.epochs}; expected at least 1")
        if self.seeds < 2:
            raise ValueError(
                f"--seeds is {self.seeds}; expected at least 2, since one seed shows no spread (10 is good)"
            )

    def _check_sweep(self) -> None:
        if self.sweep and (not 2 <= len(self.sweep) <= _MOST_RATES or not all(0 <= p < 1 for p in self.sweep)):
            raise ValueError(
                f"--sweep gives the rates {_list(self.sweep)}; expected 2 to {_MOST_RATES} of them in [0, 1), as in "
                "0:0.8:0.1"
            )

    def _check_use(self, names: tuple[str, ...], is_used: bool, reason: str) -> None:
        """Refuse options that the user gave and that would have no effect."""
        for declared in fields(self):
            if declared.name in names and not is_used and getattr(self, declared.name) != declared.default:
                raise ValueError(f"{flag(declared.name)} {reason}; drop the option")


def _list(values: tuple[float | str, ...]) -> str:
    return ",".join(map(str, values))
