"""Keys: the generator of every mask, and keys folded from numbers and texts."""

from __future__ import annotations

import hashlib
import operator
import threading
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from puredrop._backend import library

__all__ = [
    "BALANCED",
    "DRAWS",
    "FOLD_IN",
    "NORMAL",
    "Key",
    "as_key_number",
    "as_key_tensor",
    "as_number",
    "check_key",
    "draw_key",
    "fold_in",
    "folded",
    "philox",
]

# Values of the counter's last word, so that no two uses of one key share a counter (contract.md, "Generator").
DRAWS, FOLD_IN, NORMAL, BALANCED = 0, 1, 2, 3

_LOW, _ALL = 0xFFFFFFFF, 2**64 - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Word = TypeVar("Word", int, Tensor)


def philox(key: int | Word, counter: tuple[Word, Word, Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Compute Philox4x32-10: four random 32-bit words from a 64-bit key and a 128-bit counter.

    Args:
        key: an int below 2^64 or an int64 tensor (two's complement).
        counter: four 32-bit words, each in 0 .. 2^32 - 1, ints or int64 tensors like the key, of shapes that broadcast.

    Returns:
        Four 32-bit words, each in 0 .. 2^32 - 1.

    Reference: Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3 (SC 2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(_ROUNDS):
        # An int64 product wraps modulo 2^64 and its shift drags the sign along; the mask after the shift removes it.
        # So one text serves Python's integers and tensors.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _LOW) ^ c1 ^ k0,
            second & _LOW,
            ((first >> 32) & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """An immutable 64-bit key that determines a mask.

    Use a key where a mask must be the same again: pass `key=Key(1)` to a function or a layer, and derive further keys
    with `fold_in` instead of inventing seeds. For a whole model use `puredrop.reproducible`, which folds the keys of
    all sites and steps.

    Args:
        value: the seed, any integer, taken modulo 2^64.

    Raises:
        TypeError: if the seed is not an integer.

    >>> Key(0)
    Key(0)
    >>> Key(0).fold_in("encoder.0") == Key(0).fold_in("encoder.0") != Key(0).fold_in("encoder.1")
    True
    """

    value: int = 0

    def __post_init__(self) -> None:
        try:
            value = operator.index(self.value)
        except TypeError:
            raise TypeError(
                f"Key: seed is {self.value!r}; expected an integer (for text use Key(0).fold_in('...'))"
            ) from None
        object.__setattr__(self, "value", value % 2**64)

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"Key({self.value})"

    def fold_in(self, data: int | str) -> Key:
        """Derive another key from this key and a number or a text.

        Not injective: among 10^9 keys folded from one key, the odds that any two are equal are 2.7 %.

        Args:
            data: an integer, taken modulo 2^64, or a text, folded by its 8-byte BLAKE2b digest.

        Returns:
            The new key; this key does not change.

        Raises:
            TypeError: if data is neither an integer nor a text.

        >>> int(Key(8696911656944052979).fold_in(2**64 - 1))
        15070913094112436058
        """
        return Key(folded(self.value, as_number(data)))

    def tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Convert the key to the tensor that the operators take.

        Args:
            device: device of the tensor; None is torch's default device.

        Returns:
            A 0-d int64 tensor, two's complement.

        >>> Key(2**64 - 1).tensor()
        tensor(-1)
        """
        signed = self.value - 2**64 if self.value >= 2**63 else self.value
        return torch.tensor(signed, dtype=torch.int64, device=device)


def as_number(data: int | str) -> int:
    """Convert the data of a `fold_in` to a number; a text becomes its digest.

    Returns:
        A number below 2^64.

    Raises:
        TypeError: if data is neither an integer nor a text.
    """
    if isinstance(data, str):
        return int.from_bytes(hashlib.blake2b(data.encode(), digest_size=8).digest(), "little")
    try:
        return operator.index(data) % 2**64
    except TypeError:
        raise TypeError(f"fold_in: data is {data!r}; expected an integer or a str") from None


def folded(key: int, data: int) -> int:
    """Fold a number below 2^64 into another, as `Key.fold_in` does, without the objects."""
    compiled = None if torch.compiler.is_compiling() else library()
    if compiled is not None:
        return compiled.fold_in(key, data)
    word0, word1, _, _ = philox(key, (data & _LOW, data >> 32, 0, FOLD_IN))
    return word0 | word1 << 32


def fold_in(key: Tensor, data: Tensor | int) -> Tensor:
    """Fold numbers into keys on tensors, as `Key.fold_in` does on numbers.

    Use it where key and data (a step, for example) must stay data under compile and CUDA graphs.

    Args:
        key: int64 tensor of keys.
        data: int64 tensor whose shape broadcasts with the keys' shape, or an integer.

    Returns:
        int64 tensor of new keys, of the broadcast shape.

    >>> fold_in(Key(0).tensor(), 7).item() % 2**64 == int(Key(0).fold_in(7))
    True
    """
    if isinstance(data, int):
        data = Key(data).tensor(key.device)
    folded: Tensor = torch.ops.puredrop.fold_in.default(key, data)
    return folded


def _fold_in_kernel(key: Tensor, data: Tensor) -> Tensor:
    for name, value in (("key", key), ("data", data)):
        if value.dtype != torch.int64:
            raise TypeError(f"fold_in: {name} has dtype {value.dtype}; expected torch.int64")
    if key.numel() == data.numel() == 1 and key.device.type == data.device.type == "cpu":
        # A training step folds one key: the tensor operators below would be slower.
        number = folded(int(key.item()) % 2**64, int(data.item()) % 2**64)
        return Key(number).tensor(key.device).view(torch.broadcast_shapes(key.shape, data.shape))
    zero = torch.zeros_like(data)
    word0, word1, _, _ = philox(key, (data & _LOW, (data >> 32) & _LOW, zero, zero + FOLD_IN))
    return word0 | word1 << 32


# An opaque operator, not traced: generated C++ would turn the wrapping int64 product above into signed overflow,
# which is undefined there.
_library = torch.library.Library("puredrop", "FRAGMENT")
_library.define("fold_in(Tensor key, Tensor data) -> Tensor")
_library.impl("fold_in", _fold_in_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("puredrop::fold_in", lambda key, data: torch.empty_like(key ^ data), lib=_library)


def _fold_in_vmap(info: Any, in_dims: tuple[int | None, int | None], *arguments: Tensor) -> tuple[Tensor, int]:
    """Map by broadcasting: put the mapped dimension first and line up the others."""
    rank = max(a.dim() - (dim is not None) for a, dim in zip(arguments, in_dims, strict=True))
    aligned = []
    for a, dim in zip(arguments, in_dims, strict=True):
        if dim is not None:
            a = a.movedim(dim, 0)
            a = a.reshape(a.shape[0], *[1] * (rank - a.dim() + 1), *a.shape[1:])
        aligned.append(a)
    return fold_in(*aligned), 0


torch.library.register_vmap("puredrop::fold_in", _fold_in_vmap, lib=_library)


# The range of every fresh key; torch's generators give int64 below their upper bound.
_DRAWN = (-(2**63), 2**63 - 1)


def draw_key(device: torch.device) -> Tensor:
    """Draw a key from torch's default generator of a device, once per dropout call without a key.

    So `manual_seed`, `fork_rng`, `get_rng_state` and activation checkpointing act on masks as on torch's own.

    Args:
        device: the device whose generator advances by one draw.

    Returns:
        A 0-d int64 tensor on that device.
    """
    return torch.randint(*_DRAWN, (), dtype=torch.int64, device=device)


class _Scratch(threading.local):
    """Per-thread scratch tensor; `random_` on it gives the value that `randint` would, faster."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.draw = torch.empty((), dtype=torch.int64, device="cpu").random_


_scratch = _Scratch()


def as_key_number(key: Key | Tensor | None) -> int:
    """Return the key of a call on the CPU as a number; None draws a key as `draw_key` does.

    Args:
        key: a `Key`, a 0-d int64 tensor, or None.

    Returns:
        The key as a number below 2^64.

    Raises:
        TypeError: if the key is anything else.
    """
    if key is None:
        fresh: int = _scratch.draw(*_DRAWN).item()  # type: ignore[assignment]
        return fresh & _ALL
    if isinstance(key, Key):
        return key.value
    return int(_checked(key).item()) & _ALL


def as_key_tensor(key: Key | Tensor | None, device: torch.device) -> Tensor:
    """Return the key of a call as a tensor; None draws a key as `draw_key` does.

    Args:
        key: a `Key`, a 0-d int64 tensor, or None.
        device: the input's device.

    Returns:
        A 0-d int64 tensor.

    Raises:
        TypeError: if the key is anything else.
    """
    if key is None:
        return draw_key(device)
    return key.tensor(device) if isinstance(key, Key) else _checked(key)


def check_key(key: Key | None) -> None:
    """Check the key that a layer or a block stores: a `Key`, or None.

    Raises:
        TypeError: if the key is neither.
    """
    if key is not None and not isinstance(key, Key):
        raise TypeError(
            f"key is {key!r}; expected puredrop.Key or None: pass key={_suggested(key)} for the same mask in each "
            "forward, or call puredrop.reproducible(model, seed=1) for a new mask in each step"
        )


def _suggested(key: object) -> str:
    """Return the key that a user who passed a number meant, as he would type it."""
    return f"puredrop.Key({key if isinstance(key, int) else 1})"


def _checked(key: Tensor) -> Tensor:
    if not isinstance(key, Tensor):
        raise TypeError(
            f"key is {key!r}; expected puredrop.Key, a 0-d int64 tensor or None (for a number pass "
            f"key={_suggested(key)})"
        )
    if key.dtype != torch.int64 or key.dim() != 0:
        raise TypeError(
            f"key is a tensor of dtype {key.dtype} and shape {tuple(key.shape)}; "
            "expected a 0-d torch.int64 tensor, such as puredrop.Key(0).tensor()"
        )
    return key
