"""Data sets of `compare`, split into training, validation and test rows; digits and MNIST."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puredrop._text import first_line
from puredrop.compare.tasks import Classification, Task

__all__ = ["MNIST_URL", "SUFFIXES", "VALIDATION_SHARE", "Data", "DataSplit", "load"]

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# SHA-256 of the contents: mirrors compress the same bytes differently.
_MNIST = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

# The files that `tables` reads.
SUFFIXES = (".csv", ".parquet", ".npz")

# One sixth of the rows that are not test rows choose the epoch.
VALIDATION_SHARE = 6
_DIGITS_TEST_ROWS = 599
_SPLIT_SEED = 0


@dataclass(frozen=True)
class DataSplit:
    """Rows of one part of the data.

    Args:
        x: float32 (rows, features).
        y: (rows,), class numbers (int64) or the standardised target (float32).
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """A data set, split.

    Args:
        name: "digits", "mnist", or the name of the user's file.
        task: the task of the target.
        train, validation, test: its parts; validation chooses the epoch, test is for the last measurement only.
        notes: one line for each thing that was inferred or done.
    """

    name: str
    task: Task
    train: DataSplit
    validation: DataSplit
    test: DataSplit
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> Data:
        """Return the same data on a device, floating-point values in a dtype."""

        def move(split: DataSplit) -> DataSplit:
            y = split.y.to(device, dtype) if split.y.is_floating_point() else split.y.to(device)
            return DataSplit(split.x.to(device, dtype), y)

        train, validation, test = map(move, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def digest(self) -> str:
        """Return a hash of every value, by which a resumed run knows that its data are the same."""
        state = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.validation, self.test):
            for tensor in (split.x, split.y):
                state.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return state.hexdigest()


def load(name: str, data_dir: Path | None = None, rows: int | None = None, *, url: str = MNIST_URL) -> Data:
    """Read a data set.

    Args:
        name: "digits" (8x8, bundled with scikit-learn) or "mnist" (28x28, IDX files).
        data_dir: the folder of MNIST's four gzipped IDX files; None downloads them once, checksums verified.
        rows: number of rows to use of those that are not test rows, drawn at random; None for all.
        url: the address that MNIST is downloaded from.

    Returns:
        The data, split always the same way.

    Raises:
        ValueError: for an unknown name, an unreadable file, or more rows than there are.
        OSError: for a missing folder or file, or a download that fails.
    """
    if name == "digits":
        if data_dir is not None:
            raise ValueError(f"--data-dir is {str(data_dir)!r}, but digits come with scikit-learn; drop the option")
        x, y, test_x, test_y = _digits()
    elif name == "mnist":
        x, y, test_x, test_y = _mnist(_mnist_files(data_dir, url))
    else:
        raise ValueError(f"data is {name!r}; expected digits, mnist, or a file named {', '.join(SUFFIXES)}")
    x, y = _choose(x, y, rows)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    cut = len(y) // VALIDATION_SHARE
    train, validation = _split(x[order[cut:]], y[order[cut:]]), _split(x[order[:cut]], y[order[:cut]])
    classes = int(max(y.max(), test_y.max())) + 1
    return Data(name, Classification(classes), train, validation, _split(test_x, test_y))


def _split(x: NDArray[np.float32], y: NDArray[np.int64]) -> DataSplit:
    return DataSplit(torch.from_numpy(np.ascontiguousarray(x, np.float32)), torch.from_numpy(np.ascontiguousarray(y)))


def _choose(
    x: NDArray[np.float32], y: NDArray[np.int64], rows: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if rows is None:
        return x, y
    least = 10 * VALIDATION_SHARE
    if not least <= rows <= len(y):
        raise ValueError(f"--rows is {rows}; expected {least} to {len(y)}, the rows that are not kept for the test")
    chosen = np.random.default_rng(_SPLIT_SEED + 1).permutation(len(y))[:rows]
    return x[chosen], y[chosen]


_Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def _digits() -> _Arrays:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x, y = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    x, test_x, y, test_y = train_test_split(x, y, test_size=_DIGITS_TEST_ROWS, stratify=y, random_state=_SPLIT_SEED)
    return x, y, test_x, test_y


def _mnist_files(data_dir: Path | None, url: str) -> dict[str, bytes]:
    """Return the contents of MNIST's four files, read from a folder or downloaded and cached."""
    if data_dir is None:
        return _downloaded(url)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data-dir is {str(data_dir)!r}, which is no folder")
    missing = [name for name in _MNIST if not (data_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--data-dir {str(data_dir)!r} lacks {', '.join(missing)}")
    return {name: _unzip(data_dir / name) for name in _MNIST}


def _downloaded(url: str) -> dict[str, bytes]:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(pooch.os_cache("puredrop"), url, registry=dict.fromkeys(_MNIST), retry_if_failed=1)
    contents = {}
    for name, expected in _MNIST.items():
        try:
            path = Path(fetcher.fetch(name))
        except OSError as error:
            # An error inside pooch says a paragraph; the user needs its first line and the way out.
            reason = first_line(error, 120)
            raise OSError(f"cannot download MNIST from {url} ({reason}); give its files with --data-dir") from error
        contents[name] = _unzip(path)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            path.unlink()
            raise ValueError(f"{url}{name}: not the MNIST file (wrong checksum); give its files with --data-dir")
    return contents


def _unzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); fetch it again") from error


def _mnist(contents: dict[str, bytes]) -> _Arrays:
    x, y, test_x, test_y = (_parse_idx(name, data) for name, data in contents.items())
    for part, images, labels in (("train", x, y), ("t10k", test_x, test_y)):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{part} files: expected images (n, rows, columns) and labels (n,), "
                f"got {images.shape} and {labels.shape}"
            )
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(f"train images are {x.shape[1:]}, t10k images {test_x.shape[1:]}; expected one size")
    flat = [(images.reshape(len(images), -1) / np.float32(255)).astype(np.float32) for images in (x, test_x)]
    return flat[0], y.astype(np.int64), flat[1], test_y.astype(np.int64)


def _parse_idx(name: str, data: bytes) -> NDArray[np.uint8]:
    """Parse an IDX file of bytes: two zeros, the type 8, the rank, big-endian sizes, then the data."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{name}: not an IDX file of bytes")
    sizes = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(sizes, dtype=np.int64):
        raise ValueError(f"{name}: says it holds {' x '.join(map(str, sizes))} bytes but holds {values.size}")
    return values.reshape(sizes)
