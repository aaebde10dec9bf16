"""Recognition of calls of torch's functional dropout, and puredrop's equivalent of each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from puredrop import ops
from puredrop.functional.alpha import alpha_dropout, feature_alpha_dropout
from puredrop.functional.attention import scaled_dot_product_attention
from puredrop.functional.block import drop_block2d
from puredrop.functional.channel import drop_channels, dropout1d, dropout2d, dropout3d
from puredrop.functional.element import dropout
from puredrop.functional.fused import bias_dropout_add, dropout_add, gelu_dropout, relu_dropout
from puredrop.functional.gaussian import gaussian_dropout
from puredrop.functional.multi_head import multi_head_attention_forward
from puredrop.functional.path import drop_path
from puredrop.functional.recurrent import packs, recurrent
from puredrop.rng import Key, check_key

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["InterceptedCall", "Interception", "drops", "intercept", "recognise"]

KeyedCall = Callable[[Any], Any]


@dataclass(frozen=True)
class InterceptedCall:
    """One call of a torch function that drops.

    Args:
        kind: "dropout", "dropout1d", ..., "attention", "recurrent".
        input: the tensor that is dropped from; for attention the query, for recurrent networks the input.
        p: drop probability in [0, 1].
        training: whether the call drops anything.
        keyed_call: function that makes the same call with puredrop's operator under a key.
        sample_dim: the samples' dimension in the dropped tensor; None where it is the model's own.
    """

    kind: str
    input: Tensor
    p: float
    training: bool
    keyed_call: KeyedCall
    sample_dim: int | None = None

    def with_key(self, key: Any) -> Any:
        """Make the same call with puredrop's operator under a key, a key source, or None."""
        return self.keyed_call(ops.with_sample_dim(key, self.sample_dim))


def _elementwise(kind: str, function: Callable[..., Tensor], default: bool) -> Callable[..., InterceptedCall]:
    def read(input: Tensor, p: float = 0.5, training: bool = default, inplace: bool = False) -> InterceptedCall:
        return InterceptedCall(kind, input, p, training, lambda key: function(input, p, training, inplace, key=key))

    return read


def _builtin(kind: str, function: Callable[..., Tensor], inplace: bool) -> Callable[..., InterceptedCall]:
    def read(input: Tensor, p: float, train: bool) -> InterceptedCall:
        _check_builtin_rate(p)
        return InterceptedCall(kind, input, p, train, lambda key: function(input, p, train, inplace, key=key))

    return read


def _check_builtin_rate(p: float) -> None:
    """Refuse a rate outside [0, 1] with the class of torch's own operators, where its Python functions differ."""
    try:
        ops.as_rate(p)
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def _channels(
    input: Tensor, p: float, training: bool, inplace: bool, *, key: Key | Tensor | ops.KeySource | None
) -> Tensor:
    return drop_channels(input, ops.as_rate(p), training, inplace, 1, key, None, None, 0)


def _attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **named: Any) -> InterceptedCall:
    p = arguments[1] if len(arguments) > 1 else named.get("dropout_p", 0.0)
    _check_builtin_rate(p)
    return InterceptedCall(
        "attention",
        query,
        p,
        True,
        lambda k: scaled_dot_product_attention(query, key, value, *arguments, **named, dropout_key=k),
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


_OURS = {
    *(dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout, scaled_dot_product_attention),
    *(gaussian_dropout, drop_path, drop_block2d, relu_dropout, gelu_dropout, dropout_add, bias_dropout_add),
}


def drops(function: Any) -> bool:
    """Return whether a hashable function is one of torch's or ours that drop."""
    return function in _READERS or function in _OURS


def recognise(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> InterceptedCall | None:
    """Return the description of a call that drops, or None for any other call."""
    try:
        read = _READERS.get(function)
    except TypeError:  # an unhashable callable, so not torch's
        return None
    return None if read is None else read(*arguments, **named)


class Interception(TorchFunctionMode):
    """A torch function mode that hands calls of torch's dropout functions to `serve`.

    Args:
        serve: function from a recognised call to the call's result.
    """

    def __init__(self, serve: Callable[[InterceptedCall], Any]) -> None:
        super().__init__()
        self._serve = serve

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Serve a recognised call; let every other call through."""
        call = recognise(func, args, kwargs or {})
        if call is None:
            return func(*args, **(kwargs or {}))
        ops.transparent.modes -= 1  # torch closes the mode while this method runs
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
    """Run torch's functional dropout through puredrop's operator inside a `with` block, without a change of the model.

    Use it where you cannot edit a model that calls `F.dropout`. It reaches `F.dropout` and its variants, attention
    dropout in `scaled_dot_product_attention` and in multi-head attention, and dropout between the layers of recurrent
    networks: their masks become pure functions of keys, and no mask is stored for backward. Code that draws its own
    random numbers is unaffected; `puredrop.sites` lists it.

    Args:
        key: key of the block: the n-th call of a kind has the key `key.fold_in(kind).fold_in(n)`. None draws a key for
            each call from torch's default generator.

    Raises:
        TypeError: if the key is neither a `Key` nor None.
        RuntimeError: at the `with`, if the block has a key and is open in another thread, whose calls would be counted
            together with this thread's. Make a block in each thread: it acts in the thread that opens it alone.

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
            return call.with_key(None if key is None else key.fold_in(call.kind).fold_in(count))

        super().__init__(serve)
        self._is_counted = key is not None
        self._opened = threading.RLock()

    def __enter__(self) -> Self:
        if self._is_counted and not self._opened.acquire(blocking=False):
            raise RuntimeError(
                "this intercept(key) is open in another thread, and the calls of both would be counted together; make "
                "one in each thread, with keys of their own: intercept(key.fold_in(thread))"
            )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._is_counted:
            self._opened.release()
