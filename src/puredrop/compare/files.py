"""Files that are whole or absent, whatever kills the process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

__all__ = ["digest", "load_checkpoint", "save_checkpoint", "write"]


def write(path: Path, data: bytes) -> None:
    """Write a file so that after any crash the old content or the new is there, never a mixture."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON state as one safetensors file that carries its own checksum.

    Args:
        path: where.
        tensors: by name.
        state: what JSON can hold; floats come back bit for bit.
    """
    text = json.dumps(state)
    data = safetensors.torch.save(tensors, {"state": text, "digest": digest(tensors, text)})
    write(path, data)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote, all of it or nothing.

    Args:
        path: the file.

    Returns:
        Tensors by name, and the state.

    Raises:
        ValueError: if the file is not what was written; the message names it.
        OSError: if it cannot be read.
    """
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
    return tensors, json.loads(metadata["state"])


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Of tensors' names, kinds, sizes and values, and of a text."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
