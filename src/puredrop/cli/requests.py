"""Options of `puredrop explain` and `puredrop predict`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from puredrop._options import names, option

__all__ = ["ExplainRequest", "PredictRequest"]


@dataclass(frozen=True)
class ExplainRequest:
    """Options of `puredrop explain`: each field is one, and its help says what it means."""

    model: str = option(
        MISSING,
        "module:factory (the module is imported and runs), a Hugging Face folder, or the folder of a run of compare",
        positional=True, metavar="MODEL",
    )  # fmt: skip
    data: str | None = option(
        None, "digits, mnist, or a .csv, .parquet or .npz file; of a run: its own", positional=True, nargs="?",
        metavar="DATA",
    )  # fmt: skip
    weights: Path | None = option(
        None, "of a factory: the state, .safetensors or what torch.save wrote", type=Path, metavar="FILE"
    )
    against: Path | None = option(
        None, "the state of the same model trained without dropout", type=Path, metavar="FILE"
    )
    target: str | None = option(None, "of a file: the column, or array (default: y), to predict", metavar="NAME")
    columns: tuple[str, ...] | None = option(
        None, "features in the model's order (default: all numeric columns), or one of text; arrays of an .npz file",
        type=names, metavar="A,B",
    )  # fmt: skip
    task: Literal["classification", "regression"] | None = option(
        None, "default: by the target's type", choices=("classification", "regression")
    )
    data_dir: Path | None = option(None, "folder of MNIST's four IDX files (.gz)", type=Path, metavar="DIR")
    rows: int = option(1024, "use so many rows at most (default: 1024)", type=int, metavar="N")
    members: int = option(64, "masks and members to run (default: 64)", type=int, metavar="N")
    seed: int = option(0, "of masks and of the choice of rows (default: 0)", type=int, metavar="N")
    copy: int = option(0, "of a run: which of its seeds (default: 0)", type=int, metavar="N")
    out: Path | None = option(
        None, "output folder (default: the run's, or runs/NAME-explain)", type=Path, metavar="DIR"
    )


@dataclass(frozen=True)
class PredictRequest:
    """Options of `puredrop predict`: each field is one, and its help says what it means."""

    model: str = option(
        MISSING, "a function without arguments that returns the trained model; the module is imported and runs",
        positional=True, metavar="MODULE:FACTORY",
    )  # fmt: skip
    data: Path = option(MISSING, "a .csv, .parquet or .npz file", positional=True, type=Path, metavar="DATA")
    out: Path = option(MISSING, "the file to write", type=Path, metavar="FILE.parquet")
    members: int = option(64, "members (default: 64)", type=int, metavar="N")
    task: Literal["classification", "regression"] = option(
        "classification", "default: classification", choices=("classification", "regression")
    )
    seed: int = option(0, "of the members' masks (default: 0)", type=int, metavar="N")
    masks: Literal["shared", "independent"] = option(
        "shared", "one mask for all rows (default), or own", choices=("shared", "independent")
    )
    columns: tuple[str, ...] | None = option(
        None, "features, in the model's order (default: all numeric columns); of an .npz file: the array (default: x)",
        type=names, metavar="A,B",
    )  # fmt: skip
    weights: Path | None = option(
        None, "the model's state, .safetensors or what torch.save wrote", type=Path, metavar="FILE"
    )
    part_rows: int = option(16384, "rows that are written at once (default: 16384)", type=int, metavar="N")
