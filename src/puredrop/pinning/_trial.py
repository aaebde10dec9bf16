"""Trial of a model on other numbers of samples, on a copy and without side effects."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._text import first_line
from puredrop._torch import remove_hooks, watch_operators
from puredrop._torch_modes import fake_tensors
from puredrop.inspection.axes import Axis, AxisTrace, counts_apart, sizes_of
from puredrop.inspection.callers import calling_line
from puredrop.inspection.duplicate import duplicate, strays_refused
from puredrop.inspection.outside import outside_positions
from puredrop.inspection.state import generators_restored, uncompiled
from puredrop.inspection.tensors import tensors_in, with_tensors
from puredrop.nn import LayerDrop
from puredrop.ops import DropoutOverride, Place
from puredrop.pinning._draws import unwatched
from puredrop.pinning._forward_state import Observer
from puredrop.pinning._placement import ObservedUse
from puredrop.pinning._recompute import unwatch_checkpoints
from puredrop.pinning._restored import variables_restored
from puredrop.pinning._samples import Layout
from puredrop.rng import Key

__all__ = ["Attempt", "Pin", "Trial", "Uses", "try_model"]

Uses = dict[tuple[str, int | None], list[ObservedUse]]
Draw = tuple[str, str, str, str]
Pin = Callable[[Module], Any]


class _Identity(DropoutOverride):
    """Dropout that keeps everything, so that a trial draws nothing and needs no masks."""

    def drop(self, input: Tensor, p: float | Tensor, place: Place, inplace: bool) -> Tensor:
        """Return the input, or a copy."""
        return input if inplace else input.clone()


class Trial(Observer):
    """Record of a trial.

    Args:
        trace: trace of the samples through the operators.
        draws: receives path, kind, place and function of each draw outside of dropout.

    Attributes:
        uses: uses of sites by path and sample dimension.
    """

    def __init__(self, trace: AxisTrace, draws: dict[Draw, None]) -> None:
        self.trace = trace
        self.uses: Uses = {}
        self.draws = draws
        self.forward: Any = None

    def note(self, forward: Any, kind: str, input: Tensor, place: Place, layout: Layout, call: int) -> Any:
        """Record a use, and let it drop nothing."""
        is_placed = place.window_shape is not None or place.sample_ids is not None
        use = ObservedUse(tuple(input.shape), self.trace.count, place.shared_dims, is_placed, self.trace.axis(input))
        self.uses.setdefault((layout.path, layout.sample_dim), []).append(use)
        return _Identity() if kind == "dropout" else Key(0)

    def see(self, operator: Any, values: tuple[Any, ...]) -> None:
        """Follow an operator, and record it if it draws."""
        self.trace.see(operator, values)
        # Attention of torch's has the tag also where it drops nothing.
        if torch.Tag.nondeterministic_seeded in operator.tags and "attention" not in operator.__name__:
            name = operator.__name__.partition(".")[0].rstrip("_")
            self.draws.setdefault((self.forward.path, "draw", calling_line() or "?", name))


@dataclass
class Attempt:
    """Record of the trials of a model.

    Args:
        trials: record of each forward that succeeded.
        draws: draws of all forwards, also of one that failed.
        reason: why no forward succeeded, or "".
    """

    trials: list[Trial] = field(default_factory=list)
    draws: dict[Draw, None] = field(default_factory=dict)
    reason: str = ""


def try_model(
    root: Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int,
    dim: int,
    pin: Pin,
    *,
    is_fake: bool,
    only_first: bool = False,
) -> Attempt:
    """Run a copy of a model on other numbers of samples.

    Args:
        root: the model.
        args, kwargs: arguments of its call.
        count: number of samples in them.
        dim: dimension of the samples.
        pin: function that pins the copy with the model's settings, and returns its forward.
        is_fake: whether two forwards run on tensors without data; otherwise one runs on the rows and some rows again.
        only_first: whether the first tensor alone holds samples, of those that have as many indices there.
    """
    attempt = Attempt()
    try:
        with _undisturbed(), variables_restored(root), strays_refused(root):
            forward = pin(_copied(root))
            try:
                counts = _counts(root, args, kwargs, count, dim, 10 if is_fake else max(4, count))
                for new in itertools.islice(counts, 2 if is_fake else 1):
                    resize = _Resize(count, new, dim, is_fake, only_first)
                    attempt.trials.append(_tried(forward, args, kwargs, resize, attempt.draws))
            finally:
                forward.is_released = True
                unwatch_checkpoints(forward)
    except Exception as error:  # any error of a model's forward on other inputs than the user's
        attempt.trials, attempt.reason = [], first_line(error, 100)
    return attempt


class _Resize:
    """Change of an argument to another number of samples.

    Args:
        count, new: number of samples before and after.
        dim: dimension of the samples.
        is_fake: whether the result has no data; otherwise rows are taken again.
        only_first: whether the first tensor with so many indices alone is changed.
    """

    def __init__(self, count: int, new: int, dim: int, is_fake: bool, only_first: bool) -> None:
        self.count, self.new, self.dim = count, new, dim
        self.is_fake, self.only_first = is_fake, only_first
        self.trace = AxisTrace(new)
        self._changes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor with the new number of samples, or as it is where it holds none."""
        dim, new = self.dim, self.new
        if tensor.dim() <= dim or tensor.shape[dim] != self.count or (self.only_first and self._changes):
            return tensor
        self._changes += 1
        if self.is_fake:
            sizes = [new if d == dim else size for d, size in enumerate(tensor.shape)]
            result = torch.empty(sizes, dtype=tensor.dtype, device=tensor.device)
        else:
            result = tensor.index_select(dim, (torch.arange(new) % self.count).to(tensor.device))
        self.trace.mark(result, Axis(dim, 1, 1))
        return result


def _tried(
    forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], resize: _Resize, draws: dict[Draw, None]
) -> Trial:
    """Run a pinned copy once, on another number of samples."""
    trial = Trial(resize.trace, draws)
    trial.forward, forward.observer = forward, trial
    before = outside_positions()
    with ExitStack() as stack:
        stack.enter_context(generators_restored())  # each trial, and the forward itself, takes the same branches
        if resize.is_fake:
            stack.enter_context(fake_tensors())
        arguments, named = with_tensors(args, resize), with_tensors(dict(kwargs), resize)
        stack.enter_context(watch_operators(trial.see))
        try:
            forward.root(*arguments, **named)
        finally:
            after = outside_positions()
            for kind, is_other in (("python", after[0] != before[0]), ("numpy", after[1:] != before[1:])):
                if is_other:
                    draws.setdefault(("", kind, "?", kind))
    return trial


def _counts(
    root: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int, dim: int, least: int
) -> Iterator[int]:
    """Return numbers of samples that divide no size of the model or its inputs, so that shapes show the samples."""
    sizes = sizes_of(root)
    for tensor in tensors_in((args, kwargs)):
        sizes.update(size for d, size in enumerate(tensor.shape) if size and (d != dim or size != count))
    return (number for number in counts_apart(sizes, least) if number != count)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a forward change neither generators nor modes, and warn of nothing."""
    with ExitStack() as stack:
        stack.enter_context(generators_restored())
        stack.enter_context(unwatched)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _copied(root: Module) -> Module:
    """Return a copy of a model whose forward writes into no container of the user's, without the user's hooks."""
    new = duplicate(root)
    copies: dict[int, Any] = {}
    for module in new.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        remove_hooks(module, lambda hook: not _module_of(hook).startswith("torch."))
        for name, value in vars(module).items():
            if type(value) in (list, dict, set, deque) and not _is_table(name):
                vars(module)[name] = copies.setdefault(id(value), copy.copy(value))
        if isinstance(module, LayerDrop):
            module.training = False  # it then runs its layer always
    return new


_TABLES = frozenset(vars(Module()))


def _is_table(name: str) -> bool:
    return name in _TABLES


def _module_of(hook: Any) -> str:
    """Return the name of the module that defines a hook."""
    function = getattr(hook, "__func__", hook)
    return str(getattr(function, "__module__", None) or type(hook).__module__)
