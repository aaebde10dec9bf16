"""Trace of the samples' dimension through the operators of one forward."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from math import isqrt, prod
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import Module

from puredrop._torch import has_hooks
from puredrop.inspection.tensors import tensors_in

__all__ = ["Axis", "AxisTrace", "counts_apart", "is_rowwise", "sizes_of"]

_ROWWISE = (
    *(nn.Sequential, nn.Linear, nn.Identity, nn.LayerNorm, nn.BatchNorm1d, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh),
    *(nn.Sigmoid, nn.Softmax, nn.LeakyReLU, nn.ELU, nn.Dropout),
)
"""Modules that leave samples in the first dimension of a matrix."""

_MARK = "_puredrop_axis"
_RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "view_as"})
"""Operators that keep the order of elements and may merge or split dimensions."""
_SHORTENS = frozenset({"slice", "split", "split_with_sizes", "narrow", "chunk"})
_MOVES = frozenset(
    {"permute", "transpose", "t", "movedim", "numpy_T", "unsqueeze", "squeeze", "expand", "detach", "alias"}
)


class Axis(NamedTuple):
    """Position of the samples in a tensor: index (o * samples + s) * inner + i of a dimension belongs to sample s.

    Args:
        dim: the dimension.
        outer: number of indices that vary more slowly than the samples, such as heads that come first.
        inner: number of indices that vary faster, such as the heads of a sample.
    """

    dim: int
    outer: int
    inner: int


class AxisTrace:
    """Trace of the dimension that holds the samples, from a model's inputs through each operator.

    The number of samples divides no other size, so that a tensor's shape shows the dimension. The order within the
    dimension follows from the operators that merge, split and join dimensions.

    Args:
        count: number of samples.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def mark(self, tensor: Tensor, axis: Axis | None) -> None:
        """Record where the samples lie in a tensor; None for an unknown order."""
        vars(tensor)[_MARK] = axis

    def axis(self, tensor: Tensor) -> Axis | None:
        """Return where the samples lie in a tensor; None where they lie in no dimension, or in an unknown order."""
        axis: Axis | None = vars(tensor).get(_MARK)
        return axis

    def see(self, operator: Any, values: tuple[Any, ...]) -> None:
        """Record where the samples lie in what an operator returns.

        Args:
            operator: the operator.
            values: its positional arguments and, last, what it returned.
        """
        name = operator.__name__.partition(".")[0]
        inputs = list(tensors_in(values[:-1]))
        for output in tensors_in(values[-1:]):
            if any(output is tensor for tensor in inputs):
                continue  # written in place
            dims = [dim for dim, size in enumerate(output.shape) if size and size % self.count == 0]
            if dims:
                self.mark(output, self._derived(name, inputs, output, dims[0]) if len(dims) == 1 else None)

    def _derived(self, name: str, inputs: list[Tensor], output: Tensor, dim: int) -> Axis | None:
        """Return the axis of an output with the samples in one dimension; None if their order is unknown."""
        marked = [axis for tensor in inputs if (axis := self.axis(tensor)) is not None]
        if any(_MARK in vars(tensor) and self.axis(tensor) is None for tensor in inputs):
            return None
        factor = output.shape[dim] // self.count
        if name in _RESHAPES and inputs:
            axis = self.axis(inputs[0])
            return None if axis is None else self._reshaped(inputs[0], axis, output, dim)
        if name == "cat":
            return self._joined(marked, len(inputs), dim, factor)
        if name == "repeat" and marked:
            axis = marked[0]
            repeats = factor // (axis.outer * axis.inner)
            return Axis(dim, axis.outer * repeats, axis.inner)
        if name in _SHORTENS and marked:
            # Of (outer, samples, inner) the first of `samples` indices are all samples only if they vary fastest.
            axis = marked[0]
            if axis.outer * axis.inner == factor:
                return Axis(dim, axis.outer, axis.inner)
            return Axis(dim, factor, 1) if axis.inner == 1 else None
        orders = {(axis.outer, axis.inner) for axis in marked if axis.outer * axis.inner == factor}
        if len(orders) == 1:
            return Axis(dim, *orders.pop())
        if factor == 1 and not (marked and name in _MOVES):
            return Axis(dim, 1, 1)
        return None

    def _reshaped(self, input: Tensor, axis: Axis, output: Tensor, dim: int) -> Axis | None:
        """Return the axis after a reshape, before which as many elements vary more slowly as before."""
        slower = prod(input.shape[: axis.dim]) * axis.outer
        before = prod(output.shape[:dim])
        outer, remainder = divmod(slower, before)
        factor = output.shape[dim] // self.count
        if remainder or not outer or factor % outer:
            return None
        return Axis(dim, outer, factor // outer)

    @staticmethod
    def _joined(marked: list[Axis], pieces: int, dim: int, factor: int) -> Axis | None:
        """Return the axis of tensors that are joined, along the samples' dimension or another."""
        if not marked:
            return Axis(dim, 1, 1) if factor == 1 else None
        axis = marked[0]
        if axis.outer * axis.inner == factor:
            return axis._replace(dim=dim)
        is_even = len(marked) == pieces and all(other == axis for other in marked)
        if is_even and pieces * axis.outer * axis.inner == factor:
            return Axis(dim, pieces * axis.outer, axis.inner)
        return None


def sizes_of(root: Module) -> set[int]:
    """Return the sizes of a model's parameters and buffers."""
    return {size for tensor in (*root.parameters(), *root.buffers()) for size in tensor.shape if size}


def counts_apart(sizes: Collection[int], least: int) -> Iterator[int]:
    """Yield numbers of samples that divide none of some sizes, so that a tensor's shape shows the samples.

    Args:
        sizes: the sizes of a model and its inputs.
        least: a number below all that are yielded.
    """
    for number in itertools.count(least + 1):
        is_prime = all(number % factor for factor in range(2, isqrt(number) + 1))
        # Sizes within a model differ from these by 1 or 2, such as by a class token or the edge of a kernel.
        if is_prime and not any((size + d) % number == 0 for size in sizes for d in range(-2, 3) if size + d > 0):
            yield number


def is_rowwise(root: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a model is a chain of layers that leave samples first, and its input a matrix."""
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 2:
        return False
    if not isinstance(root, nn.Sequential):
        return False
    return all(
        type(module) in _ROWWISE or type(module).__module__ == "puredrop.nn.element" for module in root.modules()
    ) and not any(has_hooks(module) for module in root.modules() if module is not root)
