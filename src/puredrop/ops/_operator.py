"""The operators of torch.ops.puredrop, which multiply by noise drawn from a key: schema, kernel, derivatives, vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from puredrop._backend import library
from puredrop._torch import assert_on_device, below_autograd, transforms_active
from puredrop.ops import _kernel, _reference
from puredrop.ops._arguments import Place
from puredrop.ops._values import check_finite_noise, check_ids_in_range, check_rate_value, check_size

__all__ = ["dropout", "gaussian_dropout"]

Operator = Callable[[Tensor, Tensor, Tensor, Place], Tensor]

_library = torch.library.Library("puredrop", "FRAGMENT")
_ARGUMENTS = (
    # No defaults: the dispatcher would leave out trailing arguments that equal them.
    "(Tensor input, Tensor key, Tensor p, int[] shared_dims, SymInt[]? window_shape, SymInt[]? window_offset,"
    " Tensor? sample_ids, int sample_dim) -> Tensor"
)


def _define(name: str, kernel: Operator) -> Operator:
    """Define an operator that is linear in its input and its own derivative: backward draws the noise again.

    Args:
        name: name of the operator in torch.ops.puredrop.
        kernel: function (input, key, p, place) -> output, with arguments and result as `dropout` has them.

    Returns:
        The operator, differentiable any number of times, for eager code, compilers and torch.func.
    """
    operator = _register(name, kernel)
    apply = _differentiable(operator)

    # `register_autograd` would serve backward alone, but silently gives a zero tangent in forward mode.
    def autograd_kernel(*arguments: Any) -> Tensor:
        if transforms_active():
            # Only a compiler, or a call of the operator by hand, gets here with a transform open.
            raise NotImplementedError(
                "puredrop: derivatives by torch.func inside of torch.compile are not supported; compile the function "
                f"and transform it outside, or use autograd (by hand call puredrop.functional.{name}, not "
                "torch.ops.puredrop)"
            )
        return apply(*arguments)

    _library.impl(name, autograd_kernel, "Autograd")

    def call(input: Tensor, key: Tensor, p: Tensor, place: Place) -> Tensor:
        # torch.func's transforms need the Function itself; the compilers need the operator as one opaque node.
        return (operator if torch.compiler.is_compiling() else apply)(
            input,
            key,
            p,
            list(place.shared_dims),
            place.window_shape and list(place.window_shape),
            place.window_offset and list(place.window_offset),
            place.sample_ids,
            place.sample_dim,
        )

    return call


def _register(name: str, kernel: Operator) -> Callable[..., Tensor]:
    """Register schema, kernel, fake kernel and vmap rule of an operator below torch.ops.puredrop."""

    def unpacked(
        input: Tensor,
        key: Tensor,
        p: Tensor,
        shared_dims: Sequence[int],
        window_shape: Sequence[int] | None,
        window_offset: Sequence[int] | None,
        sample_ids: Tensor | None,
        sample_dim: int,
    ) -> Tensor:
        sizes, offset = (None if values is None else tuple(values) for values in (window_shape, window_offset))
        place = Place(tuple(shared_dims), sizes, offset, sample_ids, sample_dim)
        if not torch.compiler.is_compiling():
            _check_values(input, p, place)
        return kernel(input, key, p, place)

    _library.define(name + _ARGUMENTS)
    _library.impl(name, unpacked, "CompositeExplicitAutograd")
    torch.library.register_fake(f"puredrop::{name}", lambda input, *arguments: torch.empty_like(input), lib=_library)
    operator: Callable[..., Tensor] = getattr(torch.ops.puredrop, name).default
    torch.library.register_vmap(
        f"puredrop::{name}",
        lambda info, in_dims, *arguments: _mapped(operator, info.batch_size, in_dims, *arguments),
        lib=_library,
    )
    return operator


def _check_values(input: Tensor, p: Tensor, place: Place) -> None:
    """Check values that the caller of the operator could not see: of tensors that were traced, mapped or on a GPU.

    Raises:
        ValueError: if a rate, a window or an id on the CPU is out of range; a device asserts the same of its tensors.
    """
    if p.device.type == "cpu":
        check_rate_value(p.item())
    elif p.device.type != "meta":
        assert_on_device((p >= 0) & (p <= 1), "dropout probability has to be between 0 and 1")
    if place.window_shape is not None:
        check_size(place.window_shape, place.shared_dims)
    if place.sample_ids is not None:
        check_ids_in_range(place.sample_ids, place.window_shape or input.shape, place.shared_dims, place.sample_dim)


def _differentiable(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the operator as the `apply` of a Function that autograd and torch.func differentiate."""

    class Noise(torch.autograd.Function):
        """Nothing of the input's size is saved: backward needs key, rate and ids alone."""

        @staticmethod
        def forward(input: Tensor, *arguments: Any) -> Tensor:
            # This class is the operator's autograd kernel too, which would call itself.
            return below_autograd(operator, input, *arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            _, key, p, shared_dims, window_shape, window_offset, sample_ids, sample_dim = inputs
            ctx.save_for_backward(key, p, sample_ids)
            ctx.save_for_forward(key, p, sample_ids)
            ctx.place = (shared_dims, window_shape, window_offset, sample_dim)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            return drawn_again(ctx, gradients[0]), *[None] * 7

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
            assert tangents[0] is not None  # no other argument can carry one
            return drawn_again(ctx, tangents[0])

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
            return _mapped(apply, info.batch_size, in_dims, *arguments)

    apply: Callable[..., Tensor] = Noise.apply

    def drawn_again(ctx: Any, tangent: Tensor) -> Tensor:
        key, p, sample_ids = ctx.saved_tensors
        shared_dims, window_shape, window_offset, sample_dim = ctx.place
        again = operator if torch.compiler.is_compiling() else apply
        return again(tangent, key, p, shared_dims, window_shape, window_offset, sample_ids, sample_dim)

    return apply


def _mapped(
    call: Callable[..., Tensor], batch_size: int, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[Tensor, int]:
    """Map an operator over slices, each of which is a whole tensor with its key: one key gives all slices one mask."""
    pairs = [(a, dim if isinstance(a, Tensor) else None) for a, dim in zip(arguments, in_dims, strict=True)]
    if all(dim is None for _, dim in pairs[1:6]) and pairs[6][1] is not None:
        return _mapped_samples(call, batch_size, in_dims[0], in_dims[6], *arguments)
    if any(dim is not None for _, dim in pairs[1:]):  # a key or rate per slice
        slices = ([a if dim is None else a.select(dim, i) for a, dim in pairs] for i in range(batch_size))
        return torch.stack([call(*slice_arguments) for slice_arguments in slices]), 0
    input, key, p, shared_dims, window_shape, window_offset, sample_ids, sample_dim = arguments
    # One key for all slices: the mapped dimension is one more that shares its decisions.
    output = call(
        input.movedim(in_dims[0], 0),
        key,
        p,
        [0, *(dim + 1 for dim in shared_dims)],
        window_shape and [1, *window_shape],
        window_offset and [0, *window_offset],
        sample_ids,
        sample_dim + 1,
    )
    return output, 0


def _mapped_samples(
    call: Callable[..., Tensor], batch_size: int, dim: int | None, ids_dim: int, *arguments: Any
) -> tuple[Tensor, int]:
    """Map an operator over slices that differ in their ids alone by one call, with all slices along the sample dim."""
    input, key, p, shared_dims, window_shape, window_offset, ids, sample_dim = arguments
    slices = input.expand(batch_size, *input.shape) if dim is None else input.movedim(dim, 0)
    shape = slices.shape[1:]
    together = slices.movedim(0, sample_dim).flatten(sample_dim, sample_dim + 1)
    window_shape = list(shape) if window_shape is None else window_shape
    output = call(
        together, key, p, shared_dims, window_shape, window_offset, ids.movedim(ids_dim, 0).flatten(), sample_dim
    )
    return output.unflatten(sample_dim, (batch_size, shape[sample_dim])), sample_dim


def _dropout(input: Tensor, key: Tensor, p: Tensor, place: Place) -> Tensor:
    # A compiler that traces into this kernel, as it may under torch.func, can follow only the reference.
    is_traced = torch.compiler.is_compiling()
    if input.device.type == "cpu" and input.layout == torch.strided and not is_traced and library() is not None:
        return _kernel.run(_kernel.DROPOUT, input, int(key.item()) % 2**64, float(p.item()), place)
    return _reference.dropout(input, key, p, place)


def _gaussian_dropout(input: Tensor, key: Tensor, p: Tensor, place: Place) -> Tensor:
    if not torch.compiler.is_compiling():
        if p.device.type == "cpu":
            check_finite_noise(p.item())
        elif p.device.type != "meta":
            assert_on_device(p < 1, "gaussian_dropout expects p below 1, for its noise has variance p/(1-p)")
    return _reference.gaussian_dropout(input, key, p, place)


# Each operator takes a float tensor of any shape, a key (0-d int64 tensor), a rate (0-d float tensor in [0, 1]) and the
# input's place, and returns a new tensor like the input. Key and rate are data: new values need no recompilation.
dropout = _define("dropout", _dropout)
gaussian_dropout = _define("gaussian_dropout", _gaussian_dropout)
