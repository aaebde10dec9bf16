"""A model's state from a file, without running anything that the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["load_weights"]

_SHOWN = 4
_INSIDE = ("state_dict", "model_state_dict", "model")
"""Where training loops keep a state among other things."""


def load_weights(model: Module, path: Path, name: str) -> None:
    """Load a state file into a model.

    Args:
        model: changed in place.
        path: a .safetensors file, or what torch.save wrote of a state dict (read with weights_only).
        name: what errors call the file.

    Raises:
        ValueError, OSError: with one line: no such file, no state, or the keys that are missing, unexpected or of
            another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name} {str(path)!r} is no file")
    state = _read(path, name)
    own = model.state_dict()
    if not own.keys() & state.keys():
        state = {key.removeprefix("module."): value for key, value in state.items()}  # DistributedDataParallel's
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{what} {_listed(keys)}"
        for what, keys in (
            ("missing", own.keys() - state.keys()),
            ("unexpected", state.keys() - own.keys()),
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


def _listed(keys: Iterable[str]) -> str:
    every = sorted(keys)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def _read(path: Path, name: str) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{name} {str(path)!r} is no safetensors file ({error})") from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch says of a file that is none, or that holds more than weights
        raise ValueError(
            f"{name} {str(path)!r} cannot be read as weights alone ({' '.join(str(error).split())[:120]}); save a "
            "state dict, or better a .safetensors file"
        ) from error
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{name} {str(path)!r} holds {type(found).__name__}; expected a state dict of tensors")
    return dict(found)
