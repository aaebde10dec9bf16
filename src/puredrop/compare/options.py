"""What `compare` can be asked for, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from puredrop.compare.data import SUFFIXES
from puredrop.compare.training import BATCH

__all__ = ["ARMS", "CompareOptions"]

ARMS = ("none", "dropout", "batchwise", "networks")
"""What can be trained, in this order; the first two always are."""
GROUPS = 4
_OF_A_TABLE = ("target", "task", "group", "time", "split_seed")
_OF_THE_NETWORK = ("hidden", "rates", "input_rate", "sweep")
_MOST_RATES = 20


@dataclass(frozen=True)
class CompareOptions:
    """What the user asked for; the fields are the command's options.

    Args:
        data: "digits", "mnist", or the path of a .csv, .parquet or .npz file.
        data_dir: folder of MNIST's files.
        target, task, group, time, split_seed: of a table, as in `TableOptions`.
        model: "module:factory" of the user's own network; None for the built-in one.
        hidden: widths of the hidden layers.
        rates: drop probability after each of them.
        input_rate: drop probability of the features.
        epochs: at most so many; None for the data set's default.
        seeds: how many seeds are trained together.
        rows: how many rows train and validate; None for all.
        arms: which of `ARMS` are trained.
        groups: of the arm batchwise: into how many groups that share their masks a batch is split; None for 4.
        sweep: rates of every hidden layer at which the network is trained beside the comparison; empty for none.
        out: output folder; None for runs/<name of the data>.
        device: where to train, as torch names devices.
        dtype: "float32" or "float64".
        tensorboard: write losses for TensorBoard to <out>/tensorboard.
        resume: go on with the unfinished run in the output folder.
    """

    data: str = "digits"
    data_dir: Path | None = None
    target: str | None = None
    task: str | None = None
    group: str | None = None
    time: str | None = None
    split_seed: int = 0
    model: str | None = None
    hidden: tuple[int, ...] = (512, 256)
    rates: tuple[float, ...] = (0.5, 0.3)
    input_rate: float = 0.0
    epochs: int | None = None
    seeds: int = 10
    rows: int | None = None
    arms: tuple[str, ...] = ARMS[:2]
    groups: int | None = None
    sweep: tuple[float, ...] = ()
    out: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    tensorboard: bool = False
    resume: bool = False

    @property
    def is_table(self) -> bool:
        """Whether the data are a file of the user's."""
        return Path(self.data).suffix in SUFFIXES

    @property
    def groups_used(self) -> int | None:
        """Of the arm batchwise; None without it."""
        return (self.groups or GROUPS) if "batchwise" in self.arms else None

    def check(self) -> None:
        """Raise ValueError, naming the option, for values that cannot be run."""
        if self.is_table and self.target is None:
            raise ValueError(f"--target is missing; expected the column of {self.data} to predict")
        self._check_use(_OF_THE_NETWORK, self.model is None, "is for the built-in network, but --model is given")
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

    def _check_use(self, names: tuple[str, ...], used: bool, reason: str) -> None:
        """Refuse options that would be passed over without a word: those that differ from their defaults, unused."""
        for field_ in fields(self):
            if field_.name in names and not used and getattr(self, field_.name) != field_.default:
                raise ValueError(f"--{field_.name.replace('_', '-')} {reason}; drop the option")


def _list(values: tuple[float | str, ...]) -> str:
    return ",".join(map(str, values))
