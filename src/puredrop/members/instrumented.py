"""Instrumented model: in eval mode except for its sites, which take their masks from the members of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from puredrop import ops
from puredrop._torch import transforms_active
from puredrop.conversion import Swapped, as_ours
from puredrop.functional.interception import InterceptedCall, Interception
from puredrop.inspection.duplicate import duplicate
from puredrop.inspection.frames import Frame, Hooks
from puredrop.inspection.state import generators_restored, uncompiled
from puredrop.inspection.watch import holds_dropout
from puredrop.members.sites import Axes, MemberForward, MemberSite
from puredrop.nn.keyed import HasKey

__all__ = ["FORCED", "InstrumentedModel", "Plan"]

# Function whose third argument decides whether it drops -> the name of that argument.
FORCED: dict[Callable[..., Any], str] = dict.fromkeys(
    (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), "training"
)
for _name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
    FORCED |= {getattr(torch, _name): "train", getattr(torch, f"{_name}_"): "train"}
# Function that would use batch statistics if its module is in training mode -> the argument that decides.
_STATISTICS = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}


@dataclass
class Plan:
    """Plan of how a model's sites are reached.

    Args:
        owners: paths of modules that call functional dropout in training mode only; they alone run in training mode.
        forced: paths of modules that call functional dropout in eval mode too; their training=False is overridden.
        skipped: path of a module or call that drops and is part of no member -> the reason.
        draws: whether members' forwards draw from generators, which are restored afterwards.
        axes: where the samples lie at each use of a site; empty where the layers' own word will do.
    """

    owners: set[str] = field(default_factory=set)
    forced: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    draws: bool = False
    axes: Axes = field(default_factory=dict)


class _Unkeyed(ops.KeySource):
    """Key source for our functions that are called without a key."""

    def __init__(self, site: Callable[[str], MemberSite]) -> None:
        self._site = site

    def resolve(self, kind: str, input: Tensor, place: ops.Place) -> tuple[Any, ops.Place]:
        """Answer as the site of the call."""
        return self._site(kind).resolve(kind, input, place)


class _Mode(Interception):
    """Mode that serves functional dropout, and hides training mode from normalisation functions."""

    def __init__(self, serve: Callable[[InterceptedCall], Any], is_forced: Callable[[], bool]) -> None:
        super().__init__(serve)
        self._is_forced = is_forced

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook."""
        named = kwargs or {}
        if func in _STATISTICS and (args[1] if len(args) > 1 else named.get("running_mean")) is not None:
            args, named = _with(args, named, 5, _STATISTICS[func], False)
        elif func in FORCED and self._is_forced():
            args, named = _with(args, named, 2, FORCED[func], True)
        elif func is F.linear and transforms_active() and _has_bias(args):
            return _Linear.apply(*args)
        return super().__torch_function__(func, types, args, named)


def _has_bias(args: tuple[Any, ...]) -> bool:
    return len(args) == 3 and args[2] is not None


class _Linear(torch.autograd.Function):
    """`F.linear` of many members' rows as one matrix; vmap's own adds the bias in a pass by itself."""

    generate_vmap_rule = False

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: predictions have no gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, int]:
        if in_dims[1:] != (None, None):  # weights that a decision has reached
            each: Tensor = torch.func.vmap(F.linear, in_dims)(input, weight, bias)
            return each, 0
        return F.linear(input.movedim(in_dims[0] or 0, 0), weight, bias), 0


def _exchanges(module: Module) -> bool:
    """Return whether one of our layers takes a module's place."""
    return not isinstance(module, (HasKey, Swapped)) and isinstance(as_ours(module), HasKey)


def _with(
    args: tuple[Any, ...], named: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with one value replaced."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), named
    return args, {**named, name: value}


class InstrumentedModel:
    """A model that can run members: while it is open, a duplicate of the user's model whose sites belong to members.

    Args:
        root: the model, unwrapped; it stays as it is.
        plan: how its sites are reached.
        sample_dim: dimension of the samples in the model's inputs.
    """

    def __init__(self, root: Module, plan: Plan, sample_dim: int) -> None:
        self.root = root
        self.model = root
        self.plan = plan
        self.sample_dim = sample_dim
        self.drawing: set[str] = set()
        """Paths of modules that drew random numbers themselves, as `note_draw` has seen."""
        self._moment: MemberForward | None = None
        self._frames = [Frame("")]

    @contextmanager
    def running(self, moment: MemberForward) -> Iterator[Module]:
        """Yield the model, whose forward is that of some members."""
        self._moment = moment
        self._frames = [Frame("")]
        try:
            with _Mode(self._serve, lambda: self._frames[-1].path in self.plan.forced):
                yield self.model
        finally:
            self._moment = None

    def now(self) -> MemberForward:
        """Return the open forward."""
        assert self._moment is not None
        return self._moment

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the duplicate, and run it instead of the model until the block ends."""
        with ExitStack() as stack:
            if self.plan.draws:
                stack.enter_context(generators_restored())
            stack.enter_context(torch.no_grad())
            stack.enter_context(uncompiled)
            stack.callback(setattr, self, "model", self.root)
            self.model = self._instrumented()
            outer, ops.active.source = ops.active.source, _Unkeyed(self._functional)
            stack.callback(setattr, ops.active, "source", outer)
            yield

    def _instrumented(self) -> Module:
        """Return the duplicate, with our layers in the place of others and a site in each."""
        chosen = {
            module for path, module in self.root.named_modules() if path not in self.plan.skipped and _exchanges(module)
        }
        model = duplicate(self.root, chosen, lambda copied: cast(Module, as_ours(copied))).eval()
        watched: list[tuple[Module, str, bool]] = []
        for path, module in list(model.named_modules()):
            if isinstance(module, Swapped):
                # It runs as its base class: our layer for dropout, torch's for a layer with weights.
                plain: Any = next(kind for kind in type(module).__mro__ if not issubclass(kind, Swapped))
                self.override(module, plain.forward)
            if path in self.plan.skipped:
                continue
            if isinstance(module, HasKey):
                site = MemberSite(self.now, path, module.samples_in(self.sample_dim))
                vars(module).update(key=site, training=True)
            elif holds_dropout(module) or path in self.plan.owners:
                module.training = True
                watched.append((module, path, False))
            elif path in self.plan.forced:
                watched.append((module, path, False))
        Hooks(watched).put_on(self)
        return model

    @staticmethod
    def override(module: Any, forward: Callable[..., Any]) -> None:
        """Replace a module's forward."""
        vars(module)["forward"] = MethodType(forward, module)

    def enter(self, path: str, is_site: bool, module: Module, inputs: tuple[Any, ...]) -> None:
        """Push the frame of a module that begins."""
        self._frames.append(Frame(path))

    def leave(self) -> None:
        """Pop the frame of the module that has returned or failed."""
        self._frames.pop()

    def note_draw(self, operator: Any, _: Any) -> None:
        """Record the module that runs if an operator draws random numbers in it."""
        if torch.Tag.nondeterministic_seeded in operator.tags and len(self._frames) > 1:
            self.drawing.add(self._frames[-1].path)

    def _functional(self, kind: str) -> MemberSite:
        """Return the site of a function that is called."""
        frame = self._frames[-1]
        return MemberSite(self.now, f"{frame.path}:{kind}{frame.count(kind)}", self.sample_dim)

    def _serve(self, call: InterceptedCall) -> Any:
        """Serve a call of torch's functional dropout by our function."""
        return call.with_key(self._functional(call.kind) if call.training and call.p else None)
