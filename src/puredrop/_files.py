"""Files that are whole or absent whatever kills the process, and that name their format."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["check_format", "digest", "load_checkpoint", "replacing", "save_checkpoint", "write"]

CHECKPOINT_FORMAT = 1


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends, and is deleted when the block raises.

    The file lies in the same folder, so that the replacement is one step of the file system.
    """
    # A name that nobody can guess, and O_EXCL: neither a link planted there nor another process's file is written to.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                temporary.chmod(path.stat().st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes) -> None:
    """Write a file so that after any crash the old content or the new is there, never a mixture."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)  # a device or a pipe, such as /dev/stdout: written to, never replaced
        return
    with replacing(path) as file:
        file.write(data)


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
    import safetensors.torch  # of the extra `study`

    text = json.dumps(state)
    metadata = {"format": str(CHECKPOINT_FORMAT), "state": text, "digest": digest(tensors, text)}
    write(path, safetensors.torch.save(tensors, metadata))


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
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        intact = metadata["digest"] == digest(tensors, metadata["state"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is corrupt ({error}); delete it to start again") from error
    if not intact:
        raise ValueError(f"{path} is corrupt (its checksum is wrong); delete it to start again")
    number = metadata.get("format")
    number = int(number) if number is not None and number.isdecimal() else number
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
