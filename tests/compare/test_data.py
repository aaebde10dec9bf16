import gc
import gzip
import http.server
import struct
import threading
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from puredrop.compare import data

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
SHARED_MNIST = Path(__file__).parents[3] / "shared/data/mnist"


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small data set in MNIST's format."""
    rng = np.random.default_rng(0)
    for name, rows in (("train", 90), ("t10k", 30)):
        images = rng.integers(0, 256, (rows, 5, 4), dtype=np.uint8)
        labels = (np.arange(rows) % 3).astype(np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_digits_are_split_once_and_for_all():
    digits = data.load("digits")
    sizes = [len(part.y) for part in (digits.train, digits.validation, digits.test)]
    assert sizes == [999, 199, 599]
    assert digits.task.outputs == 10
    assert digits.train.x.dtype == torch.float32
    assert (digits.train.x.min(), digits.train.x.max()) == (0, 1)
    assert digits.digest() == data.load("digits").digest()
    rows = [part.x for part in (digits.train, digits.validation, digits.test)]
    assert len(torch.cat(rows).unique(dim=0)) == 1797  # digits has no two equal images, so the parts are disjoint
    assert torch.bincount(digits.test.y).min() >= 55


def test_rows_takes_a_part_and_changes_the_digest_but_not_the_test():
    whole, part = data.load("digits"), data.load("digits", rows=120)
    assert len(part.train.y) + len(part.validation.y) == 120
    assert torch.equal(whole.test.x, part.test.x)
    assert whole.digest() != part.digest()
    for rows in (59, 1199):
        with pytest.raises(ValueError, match=rf"--rows is {rows}; expected 60 to 1198"):
            data.load("digits", rows=rows)


def test_idx_files_are_read_whatever_their_size(folder):
    found = data.load("mnist", folder)
    assert [len(part.y) for part in (found.train, found.validation, found.test)] == [75, 15, 30]
    assert found.train.x.shape[1] == 20
    assert found.task.outputs == 3
    assert found.test.y.tolist() == [i % 3 for i in range(30)]
    raw = gzip.decompress((folder / f"{NAMES[2]}.gz").read_bytes())[16:]
    assert np.allclose(found.test.x.numpy().ravel() * 255, np.frombuffer(raw, np.uint8))


def replace(folder, name, change):
    path = folder / f"{name}.gz"
    path.write_bytes(change(path.read_bytes()))


BAD_FILES = {
    "truncated gz": (lambda raw: raw[:-20], r"not a whole gzip file"),
    "damaged gz": (lambda raw: raw[:30] + bytes(9) + raw[39:], r"not a whole gzip file"),
    "not gz": (lambda raw: b"hello", r"not a whole gzip file"),
    "not idx": (lambda raw: gzip.compress(b"hello, this is no IDX file"), r"not an IDX file of bytes"),
    "empty": (lambda raw: gzip.compress(b""), r"not an IDX file of bytes"),
    "short": (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), r"says it holds 90 x 5 x 4 bytes but holds 1799"),
    "wrong rank": (lambda raw: gzip.compress(idx(np.zeros(90, np.uint8))), r"expected images \(n, rows, columns\)"),
    "wrong size": (lambda raw: gzip.compress(idx(np.zeros((90, 6, 4), np.uint8))), r"train images are \(6, 4\)"),
    "wrong rows": (lambda raw: gzip.compress(idx(np.zeros((89, 5, 4), np.uint8))), r"got \(89, 5, 4\) and \(90,\)"),
}


@pytest.mark.parametrize("what", list(BAD_FILES))
def test_a_bad_file_is_named(folder, what):
    change, message = BAD_FILES[what]
    replace(folder, NAMES[0], change)
    with pytest.raises(ValueError, match=message):
        data.load("mnist", folder)


def test_a_missing_folder_or_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"--data-dir is '/no/such', which is no folder"):
        data.load("mnist", Path("/no/such"))
    (folder / f"{NAMES[1]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {NAMES[1]}.gz"):
        data.load("mnist", folder)
    with pytest.raises(ValueError, match=r"digits come with scikit-learn; drop the option"):
        data.load("digits", folder)
    with pytest.raises(ValueError, match=r"data is 'cifar'; expected digits, mnist, or a file named .csv"):
        data.load("cifar")


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    """The folder on a local web server, and an empty cache."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests: typing.ClassVar[list[str]] = []

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            self.requests.append(self.path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", Handler.requests
        running.shutdown()
    with warnings.catch_warnings():  # the download library leaves the socket of a refused answer to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_download_is_verified_and_kept(server, folder, monkeypatch):
    import hashlib

    url, requests = server
    with pytest.raises(ValueError, match=rf"{NAMES[0]}.gz: not the MNIST file \(wrong checksum\)"):
        data.load("mnist", url=url)
    contents = {f"{name}.gz": gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in NAMES}
    monkeypatch.setattr(data, "_MNIST", {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()})
    assert data.load("mnist", url=url).digest() == data.load("mnist", folder).digest()
    before = len(requests)
    data.load("mnist", url=url)
    assert len(requests) == before


def test_a_failed_download_says_what_to_do_in_one_line(server):
    url, _ = server
    with pytest.raises(
        OSError, match=r"cannot download MNIST from http://127.*; give its files with --data-dir"
    ) as info:
        data.load("mnist", url=url + "nowhere/")
    assert "\n" not in str(info.value)


@pytest.mark.skipif(not SHARED_MNIST.is_dir(), reason="the MNIST files are not beside this checkout")
def test_the_real_mnist_files_have_the_checksums_that_downloads_must_have():
    import hashlib

    for name, expected in data._MNIST.items():
        assert hashlib.sha256(gzip.decompress((SHARED_MNIST / name).read_bytes())).hexdigest() == expected
    found = data.load("mnist", SHARED_MNIST)
    assert [len(part.y) for part in (found.train, found.validation, found.test)] == [50_000, 10_000, 10_000]
