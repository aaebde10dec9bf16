"""The options of each command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add_data", "add_explanation", "add_inputs", "add_prediction", "add_training"]


def add_data(group: argparse._ArgumentGroup) -> None:
    """What compare trains on."""
    add = group.add_argument
    add(
        "data",
        nargs="?",
        default="digits",
        metavar="DATA",
        help="digits (default), mnist, or a .csv, .parquet or .npz file",
    )
    add("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's four IDX files (.gz), else they are downloaded")
    add("--target", metavar="COLUMN", help="of a file: the column to predict")
    add("--task", choices=("classification", "regression"), help="of a file: the task, else inferred and printed")
    add("--group", metavar="COLUMN", help="of a file: keep rows with one value of this column in one part of the split")
    add("--time", metavar="COLUMN", help="of a file: order the rows by this column; the last fifth is the test")
    add("--split-seed", type=int, default=0, metavar="N", help="of a file: which random split (default: 0)")
    add("--rows", type=int, metavar="N", help="use only so many rows for training and validation")


def add_training(group: argparse._ArgumentGroup) -> None:
    """What compare trains, and how."""
    add = group.add_argument
    add(
        "--model",
        metavar="MODULE:FACTORY",
        help="your own network: a function without arguments that makes an nn.Module",
    )
    widths, rates = _numbers(int, "512,256"), _numbers(float, "0.5,0.3")
    add(
        "--hidden",
        type=widths,
        default=(512, 256),
        metavar="N,N",
        help="widths of the hidden layers (default: 512,256)",
    )
    add("--rates", type=rates, default=(0.5, 0.3), metavar="P,P", help="drop probability after each (default: 0.5,0.3)")
    add("--input-rate", type=float, default=0.0, metavar="P", help="drop probability of the features (default: 0)")
    add("--epochs", type=int, metavar="N", help="at most so many (default: 60 for digits, 20 for mnist, 40 for a file)")
    add("--device", default="cpu", help="where to train: cpu (default) or cuda")
    add("--dtype", default="float32", choices=("float32", "float64"), help="default: float32")
    add(
        "--arms",
        type=lambda text: tuple(text.split(",")),
        default=("none", "dropout"),
        metavar="A,A",
        help="none,dropout (default), and more: batchwise (groups of rows share masks), networks (mean of five)",
    )
    add("--groups", type=int, metavar="N", help="of batchwise: groups of a batch (default: 4)")
    add(
        "--sweep",
        type=_range,
        default=(),
        metavar="A:B:STEP",
        help="train at these rates, too, all seeds of all rates together, and say which are best: 0:0.8:0.1",
    )
    add("--seeds", type=int, default=10, metavar="N", help="seeds trained together (default: 10)")


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Of predict."""
    add = parser.add_argument
    add("model", metavar="MODULE:FACTORY", help="a function without arguments that returns the trained model")
    add("data", type=Path, metavar="DATA", help="a .csv, .parquet or .npz file")
    add("--out", type=Path, required=True, metavar="FILE.parquet", help="the file to write")
    add("--num-samples", type=int, default=64, metavar="N", help="members (default: 64)")
    add("--task", choices=("classification", "regression"), default="classification", help="default: classification")
    add("--seed", type=int, default=0, metavar="N", help="of the members' masks (default: 0)")
    add("--masks", choices=("shared", "independent"), default="shared", help="one mask for all rows (default), or own")
    add(
        "--columns",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="features, in the model's order (default: all numeric columns); of an .npz file: the array (default: x)",
    )
    add("--weights", type=Path, metavar="FILE", help="the model's state, .safetensors or what torch.save wrote")
    add("--part-rows", type=int, default=16384, metavar="N", help="rows that are written at once (default: 16384)")


def add_explanation(parser: argparse.ArgumentParser) -> None:
    """Of explain."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="module:factory, a Hugging Face folder, or the folder of a run of compare")
    add("data", nargs="?", metavar="DATA", help="digits, mnist, or a .csv, .parquet or .npz file; of a run: its own")
    add("--weights", type=Path, metavar="FILE", help="of a factory: the state, .safetensors or what torch.save wrote")
    add("--against", type=Path, metavar="FILE", help="the state of the same model trained without dropout")
    add("--target", metavar="NAME", help="of a file: the column, or array (default: y), to predict")
    add(
        "--columns",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="features in the model's order (default: all numeric columns), or one of text; arrays of an .npz file",
    )
    add("--task", choices=("classification", "regression"), help="default: by the target's type")
    add("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's four IDX files (.gz)")
    add("--rows", type=int, default=1024, metavar="N", help="look at so many rows at most (default: 1024)")
    add("--members", type=int, default=64, metavar="N", help="masks and members to run (default: 64)")
    add("--seed", type=int, default=0, metavar="N", help="of masks and of the choice of rows (default: 0)")
    add("--copy", type=int, default=0, metavar="N", help="of a run: which of its seeds (default: 0)")
    add("--out", type=Path, metavar="DIR", help="output folder (default: the run's, or runs/NAME-explain)")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """What sites and check run a model on."""
    parser.add_argument(
        "--input",
        type=_numbers(int, "1,3,224,224"),
        action="append",
        default=[],
        metavar="N,N",
        help="sizes of a float input to run the model on, if the factory returns none; once for each",
    )


def _numbers(kind: Callable[[str], float], example: str) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected numbers with commas between, such as {example}"
            ) from None

    return parse


def _range(text: str) -> tuple[float, ...]:
    """Numbers from start to stop, both among them."""
    try:
        start, stop, step = map(float, text.split(":"))
        count = round((stop - start) / step) + 1
        return tuple(round(start + i * step, 6) for i in range(count))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r}; expected start:stop:step, such as 0:0.8:0.1") from None
