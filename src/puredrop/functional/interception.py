"""Calls of torch's functional dropout, recognised wherever they happen, and what ours is for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from puredrop import ops
from puredrop.functional.alpha import alpha_dropout, feature_alpha_dropout
from puredrop.functional.attention import multi_head_attention_forward, scaled_dot_product_attention
from puredrop.functional.channel import dropout1d, dropout2d, dropout3d
from puredrop.functional.element import dropout
from puredrop.functional.recurrent import packs, recurrent
from puredrop.rng import Key, check_key

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["InterceptedCall", "Interception", "drops", "intercept", "recognise"]

Keyed = Callable[[Key | Tensor | None], Any]


@dataclass(frozen=True)
class InterceptedCall:
    """One call of a torch function that drops.

    Args:
        kind: "dropout", "dropout1d", ..., "attention", "recurrent".
        input: what it drops from; for attention the query, for recurrent networks the input.
        p: the rate; where `training` is False nothing is dropped.
        training: as the call says it.
        under: the same with our operator, under a key or None.
        sample_dim: where the samples lie in what is dropped; None where that is the caller's habit.
    """

    kind: str
    input: Tensor
    p: float
    training: bool
    under: Keyed
    sample_dim: int | None = None

    def ours(self, key: Any) -> Any:
        """The same with our operator, under a key, a source of keys, or None."""
        return self.under(ops.with_sample_dim(key, self.sample_dim))


def _elementwise(kind: str, function: Callable[..., Tensor], default: bool) -> Callable[..., InterceptedCall]:
    def read(input: Tensor, p: float = 0.5, training: bool = default, inplace: bool = False) -> InterceptedCall:
        return InterceptedCall(kind, input, p, training, lambda key: function(input, p, training, inplace, key=key))

    return read


def _builtin(kind: str, function: Callable[..., Tensor], inplace: bool) -> Callable[..., InterceptedCall]:
    def read(input: Tensor, p: float, train: bool) -> InterceptedCall:
        return InterceptedCall(kind, input, p, train, lambda key: function(input, p, train, inplace, key=key))

    return read


def _channels(input: Tensor, p: float, training: bool, inplace: bool, *, key: Key | Tensor | None) -> Tensor:
    return dropout(input, p, training, inplace, key=key, shared_dims=range(2, input.dim()))


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> InterceptedCall:
    p = rest[1] if len(rest) > 1 else named.get("dropout_p", 0.0)
    return InterceptedCall(
        "attention",
        query,
        p,
        True,
        lambda k: scaled_dot_product_attention(query, key, value, *rest, **named, dropout_key=k),
        sample_dim=0,
    )


def _multi_head(*arguments: Any, **named: Any) -> InterceptedCall:
    training = arguments[13] if len(arguments) > 13 else named.get("training", True)
    return InterceptedCall(
        "attention",
        arguments[0],
        arguments[10],
        training,
        lambda key: multi_head_attention_forward(*arguments, **named, dropout_key=key),
        sample_dim=0,
    )


def _recurrent(kernel: Callable[..., Any]) -> Callable[..., InterceptedCall]:
    def read(*arguments: Any) -> InterceptedCall:
        is_packed = packs(arguments)
        layers, p, training = arguments[5:8] if is_packed else arguments[4:7]
        dim = ops.PACKED if is_packed else 0 if arguments[8] else 1  # batch_first
        # With one layer there is no boundary to drop at.
        drops = training and layers > 1
        return InterceptedCall(
            "recurrent", arguments[0], p, drops, lambda key: recurrent(kernel, *arguments, key=key), dim
        )

    return read


_READERS: dict[Callable[..., Any], Callable[..., InterceptedCall]] = {
    F.dropout: _elementwise("dropout", dropout, True),
    F.dropout1d: _elementwise("dropout1d", dropout1d, True),
    F.dropout2d: _elementwise("dropout2d", dropout2d, True),
    F.dropout3d: _elementwise("dropout3d", dropout3d, True),
    F.alpha_dropout: _elementwise("alpha_dropout", alpha_dropout, False),
    F.feature_alpha_dropout: _elementwise("feature_alpha_dropout", feature_alpha_dropout, False),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}
for _name, _ours in (
    ("dropout", dropout),
    ("feature_dropout", _channels),
    ("alpha_dropout", alpha_dropout),
    ("feature_alpha_dropout", feature_alpha_dropout),
):
    _READERS[getattr(torch, _name)] = _builtin(_name, _ours, inplace=False)
    _READERS[getattr(torch, _name + "_")] = _builtin(_name, _ours, inplace=True)
for _name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    _READERS[getattr(torch, _name)] = _recurrent(getattr(torch, _name))


def drops(function: Any) -> bool:
    """Whether a function, which must be hashable, is one of torch's that drop."""
    return function in _READERS


def recognise(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> InterceptedCall | None:
    """A call that drops as such, or None for any other."""
    try:
        read = _READERS.get(function)
    except TypeError:  # unhashable, so none of them
        return None
    return None if read is None else read(*arguments, **named)


class Interception(TorchFunctionMode):
    """While it is open, calls that drop are answered by `serve`.

    Args:
        serve: a recognised call -> what it returns.
    """

    def __init__(self, serve: Callable[[InterceptedCall], Any]) -> None:
        super().__init__()
        self._serve = serve

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook."""
        call = recognise(func, args, kwargs or {})
        if call is None:
            return func(*args, **(kwargs or {}))
        ops.transparent.modes -= 1  # torch closes the mode while this runs
        try:
            return self._serve(call)
        finally:
            ops.transparent.modes += 1

    def __enter__(self) -> Self:
        ops.transparent.modes += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        ops.transparent.modes -= 1
        super().__exit__(*error)


class intercept(Interception):  # noqa: N801, used as a function is, after `with`
    """Run torch's functional dropout through our operator while this is open, without touching the model's code.

    Reaches `F.dropout` and its kin, attention dropout in `scaled_dot_product_attention` and in multi-head attention,
    and dropout between the layers of recurrent networks: their masks become pure functions of keys, and no mask is
    kept for backward. What draws its own random numbers is left alone; `puredrop.sites` lists it.

    Args:
        key: the n-th call of one kind in the block has the key `key.fold_in(kind).fold_in(n)`; None draws a key for
            each call from torch's default generator.

    Raises:
        TypeError: if the key is no `Key`.

    >>> x = torch.ones(8)
    >>> with intercept(Key(0)):
    ...     a = F.dropout(x, 0.5)
    >>> torch.equal(a, dropout(x, 0.5, key=Key(0).fold_in("dropout").fold_in(0)))
    True
    """

    def __init__(self, key: Key | None = None) -> None:
        check_key(key)
        counts: dict[str, int] = {}

        def serve(call: InterceptedCall) -> Any:
            count = counts.get(call.kind, 0)
            counts[call.kind] = count + 1
            return call.ours(None if key is None else key.fold_in(call.kind).fold_in(count))

        super().__init__(serve)
