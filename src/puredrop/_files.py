"""Files that are whole or absent whatever kills the process, and that carry their format and a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

__all__ = [
    "BLANK_CHECKSUM", "check_format", "checksum_state", "digest", "load_checkpoint", "read", "read_json",
    "read_tensors", "remove_interrupted", "replacing", "save_checkpoint", "seal", "seal_file", "write", "write_json",
    "write_page", "write_tensors",
]  # fmt: skip

CHECKPOINT_FORMAT = 1

# A file holds its own checksum as this text. It is the hash of all bytes of the file, these digits taken as zeros, so
# that one check serves every kind of file and comes before any parser. Text before and after the digits: a flipped bit
# in one of them leaves the other, which says that there is a checksum.
_BEFORE, _AFTER, _DIGITS = "puredrop blake2b-128 ", " of this file with zeros here", 32
BLANK_CHECKSUM = f"{_BEFORE}{'0' * _DIGITS}{_AFTER}"
"""Text to put into a file, once, before `seal` or `seal_file` fills in the checksum."""
_MARK = re.compile(rf"{_BEFORE}([0-9a-f]{{{_DIGITS}}}){_AFTER}|{_BEFORE}|{_AFTER}".encode())
_CHUNK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends, and is deleted when the block raises.

    The file lies in the same folder, so that the replacement is one step of the file system. It can be read as well.

    Raises:
        OSError: if the file cannot be written; the message names `path` and the reason.
    """
    # A name that nobody can guess, and O_EXCL: neither a link planted there nor another process's file is written to.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                if path.exists():
                    temporary.chmod(path.stat().st_mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder itself may have vanished
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OSError:
    """Return the error with a message of one line that names the file and the reason."""
    if error.errno is None:
        return error
    is_gone = error.errno == errno.ENOENT and not path.parent.is_dir()
    reason = f"the folder {path.parent} has vanished" if is_gone else error.strerror
    said = type(error)(f"cannot write {path}: {reason}")
    said.errno = error.errno
    return said


def _sync_folder(folder: Path) -> None:
    """Make the entry of a new name last through a power cut, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Write a file so that after any crash the old content or the new is there, never a mixture."""
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            path.write_bytes(data)  # a device or a pipe, such as /dev/stdout: written to, never replaced
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    with replacing(path) as file:
        file.write(data)


def remove_interrupted(*paths: Path) -> None:
    """Delete what killed processes were writing in the place of these files; nobody else may be writing them."""
    for path in paths:
        pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
        for interrupted in path.parent.glob(".*.tmp"):
            if pattern.fullmatch(interrupted.name):
                interrupted.unlink(missing_ok=True)


def seal(data: bytes) -> bytes:
    """Return a file's content with its checksum filled in for the first `BLANK_CHECKSUM`."""
    at = data.index(BLANK_CHECKSUM.encode()) + len(_BEFORE)
    checksum = hashlib.blake2b(data, digest_size=_DIGITS // 2).hexdigest()
    return b"".join((data[:at], checksum.encode(), data[at + _DIGITS :]))


def seal_file(file: BinaryIO) -> None:
    """Fill in the checksum of a file that is open for reading and writing and holds `BLANK_CHECKSUM`."""
    at = next(position for position, digits in _marks(file) if digits)
    checksum = _hash(file, at)
    file.seek(at)
    file.write(checksum)


def checksum_state(file: BinaryIO) -> Literal["right", "corrupt", "no checksum"]:
    """Return whether a file holds what was written, by the checksum inside; the file is read from its beginning."""
    has_mark = False
    for at, digits in _marks(file):
        has_mark = True
        if digits and digits == _hash(file, at):
            return "right"
    return "corrupt" if has_mark else "no checksum"


def _marks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give the position of each checksum's digits, and the digits; none where only one side of the text is there."""
    start, kept = 0, b""
    while True:
        file.seek(start + len(kept))
        chunk = file.read(_CHUNK)
        if not chunk:
            return
        block = kept + chunk
        for mark in _MARK.finditer(block):
            yield start + mark.start() + len(_BEFORE), mark[1] or b""
        kept = block[1 - len(BLANK_CHECKSUM) :]  # too short for a whole one, so that none is given twice
        start += len(block) - len(kept)


def _hash(file: BinaryIO, at: int) -> bytes:
    """Return the hash of a file whose digits at a position count as zeros."""
    state = hashlib.blake2b(digest_size=_DIGITS // 2)
    file.seek(0)
    remaining = at
    while remaining and (chunk := file.read(min(_CHUNK, remaining))):
        state.update(chunk)
        remaining -= len(chunk)
    state.update(b"0" * len(file.read(_DIGITS)))
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest().encode()


def read(path: Path, fix: str) -> bytes:
    """Return a file's content, checked where it holds a checksum.

    Args:
        path: the file.
        fix: what the user can do about a corrupt file.

    Raises:
        ValueError: if the file is not what was written; the message names it.
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    if checksum_state(io.BytesIO(data)) == "corrupt":
        raise ValueError(f"{path} is corrupt (its checksum is wrong); {fix}")
    return data


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, its checksum under the first key."""
    write(path, seal(json.dumps({"checksum": BLANK_CHECKSUM, **record}, indent=1).encode()))


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Return the record that a JSON file holds, without its checksum; arguments and errors as `read`."""
    data = read(path, fix)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is corrupt ({error}); {fix}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is corrupt (it holds {type(record).__name__}, not an object); {fix}")
    record.pop("checksum", None)
    return record


def write_page(path: Path, html: str) -> None:
    """Write an HTML page, its checksum in a comment at the beginning."""
    begin, doctype, body = html.partition("<!doctype html>\n")
    head, body = (begin + doctype, body) if doctype else ("", html)
    write(path, seal(f"{head}<!-- {BLANK_CHECKSUM} -->\n{body}".encode()))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, its checksum among the metadata."""
    import safetensors.torch  # of the extra `study`

    write(path, seal(safetensors.torch.save(tensors, {"checksum": BLANK_CHECKSUM, **(metadata or {})})))


def read_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; arguments and errors as `read`."""
    return _parsed(path, read(path, fix), fix)[0]


def _parsed(path: Path, data: bytes, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file's content."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is corrupt ({error}); {fix}") from error
    return tensors, header.get("__metadata__") or {}


def check_format(path: Path, number: object, expected: int, fix: str) -> None:
    """Raise ValueError unless the file's format number is the one that this version reads.

    Args:
        path: the file, for the message.
        number: its format number; None where the file has none.
        expected: the number that this version of puredrop writes and reads.
        fix: what the user can do about another number.
    """
    if number != expected:
        name = "no format number" if number is None else f"format {number}"
        raise ValueError(f"{path} has {name}, expected format {expected}: another version wrote the file; {fix}")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON state as one safetensors file that carries its format number and a checksum.

    Args:
        path: the file; one that exists is replaced.
        tensors: by name.
        state: what JSON can hold; floats come back bit for bit.
    """
    write_tensors(path, tensors, {"format": str(CHECKPOINT_FORMAT), "state": json.dumps(state)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_checkpoint`, all of it or nothing.

    Args:
        path: the file.

    Returns:
        Tensors by name, and the state.

    Raises:
        ValueError: if the file has another format or is corrupt; the message names the file.
        OSError: if it cannot be read.
    """
    fix = "delete it to start again"
    data = read(path, fix)
    tensors, metadata = _parsed(path, data, fix)
    try:
        # Checkpoints had a hash of their values before files had checksums.
        is_right = "checksum" in metadata or metadata["digest"] == digest(tensors, metadata["state"])
    except KeyError as error:
        raise ValueError(f"{path} is corrupt ({error}); {fix}") from error
    if not is_right:
        raise ValueError(f"{path} is corrupt (its checksum is wrong); {fix}")
    text = metadata.get("format")
    number = int(text) if text is not None and text.isdecimal() else text
    check_format(path, number, CHECKPOINT_FORMAT, "finish the run with that version, or delete the file to start again")
    return tensors, json.loads(metadata["state"])


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return a hash of tensors' names, dtypes, shapes and values, and of a text."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
