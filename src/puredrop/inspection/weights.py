"""Reader of a model's state from a file, which runs nothing that the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._files import read
from puredrop._text import listed

__all__ = ["load_weights"]

_SHOWN = 4
_NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training loops store a state next to other things."""


def load_weights(model: Module, path: Path, name: str) -> None:
    """Load a state file into a model.

    Args:
        model: the model, changed in place.
        path: a .safetensors file, or a state dict that torch.save wrote (read with weights_only).
        name: name of the argument, for errors.

    Raises:
        ValueError, OSError: if the file does not exist, holds no state, or has missing or unexpected keys or other
            shapes; the message is one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name} {str(path)!r} does not exist; expected a file")
    state = _read(path, name)
    expected = model.state_dict()
    if not expected.keys() & state.keys():
        state = {
            key.removeprefix("module."): value for key, value in state.items()
        }  # the prefix of DistributedDataParallel
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{problem} {listed(sorted(keys), _SHOWN)}"
        for problem, keys in (
            ("missing", expected.keys() - state.keys()),
            ("unexpected", state.keys() - expected.keys()),
            ("other shapes:", shapes),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"{name} {str(path)!r} does not fit the model: {'; '.join(problems)}; expected the state of what the "
            "factory makes"
        )
    model.load_state_dict(state)


def _read(path: Path, name: str) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(read(path, "fetch or make it again")))
        except SafetensorError as error:
            raise ValueError(f"{name} {str(path)!r} is no safetensors file ({error})") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that holds more than weights
        raise ValueError(
            f"{name} {str(path)!r} cannot be read as weights alone ({' '.join(str(error).split())[:120]}); save a "
            "state dict, or better a .safetensors file"
        ) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{name} {str(path)!r} holds {type(content).__name__}; expected a state dict of tensors")
    return dict(content)
