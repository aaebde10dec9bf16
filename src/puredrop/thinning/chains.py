"""Which layers of a model form chains that can run compacted, found by following its forward with symbols."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.nn import Module

from puredrop.functional.interception import drops
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey
from puredrop.thinning._layers import CONVOLUTIONS, DROPOUTS
from puredrop.thinning._packed import ELEMENTWISE

__all__ = ["Chain", "Found", "find", "first_line"]

_ACTIVATIONS = tuple(
    getattr(torch.nn, name)
    for name in (
        *("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "ELU", "SELU", "CELU", "LeakyReLU", "Tanh", "Sigmoid", "Softplus"),
        *("Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Softsign", "Tanhshrink", "Identity"),
    )
)
_METHODS = ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_")
# Methods of modules whose whole forward branches on its arguments: torch's own feed-forward blocks.
_BLOCKS = {torch.nn.TransformerEncoderLayer: "_ff_block", torch.nn.TransformerDecoderLayer: "_ff_block"}


@dataclass(frozen=True)
class Chain:
    """One use of a dropout layer, with its neighbours.

    Args:
        site, path: the dropout layer.
        before, before_path: the layer with weights that computes what is dropped from; None where that is another.
        between: what comes between `before` and the dropout layer, functions of one tensor in their order.
        after: layers that read what is left, by path; none where anything else reads it.
        sample_dim: where samples lie.
    """

    site: Module
    path: str
    before: Module | None
    before_path: str
    between: tuple[Callable[[Any], Any], ...]
    after: dict[str, Module]
    sample_dim: int


@dataclass
class Found:
    """What was found in a model.

    Args:
        chains: one for each use of a dropout layer that can run batchwise.
        skipped: path of each place that drops and does not -> why.
    """

    chains: list[Chain] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class _Tracer(fx.Tracer):
    """Follows a module's method down to torch's layers and to ours."""

    proxy_buffer_attributes = True  # what a forward writes into its buffers is followed, not done

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        """Whether a module is one step, not to be looked into."""
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, HasKey)


@dataclass
class _Region:
    """A part of the model, followed.

    Args:
        root, path: the module.
        calls: of modules and functions, in their order.
    """

    root: Module
    path: str
    calls: list[fx.Node]

    def module(self, node: Any) -> Module | None:
        """What a call calls, if it is a module."""
        is_one = isinstance(node, fx.Node) and node.op == "call_module"
        return self.root.get_submodule(str(node.target)) if is_one else None

    def path_of(self, node: fx.Node) -> str:
        """The called module's path in the model."""
        return _joined(self.path, str(node.target))


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def find(model: Module, sample_dim: int | None = None) -> Found:
    """The chains of a model, and why what else drops is in none.

    Args:
        model: whose modules' forwards are run with symbols in the place of tensors, as torch.fx does.
        sample_dim: where samples lie; if None, the first dimension, in torch's Transformer layers as they are told.
    """
    found, regions = Found(), []
    whys: dict[str, str] = {}
    with _untouched(model):
        regions = list(_regions(model, "", whys))
    uses: dict[Module, int] = {}
    for region in regions:
        for node in region.calls:
            if (module := region.module(node)) is not None:
                uses[module] = uses.get(module, 0) + 1
    for region in regions:
        for node in region.calls:
            _judge(region, node, uses, sample_dim, found)
    judged = {chain.path for chain in found.chains} | set(found.skipped)
    for path, module in model.named_modules():
        if holds_dropout(module) and path not in judged:
            found.skipped[path] = _why_not_seen(path, module, whys)
    return found


def _why_not_seen(path: str, module: Module, whys: dict[str, str]) -> str:
    if type(module) not in DROPOUTS:
        return _no_units(module)
    parents = ["", *(path[:i] for i, letter in enumerate(path) if letter == ".")]
    return next((whys[parent] for parent in reversed(parents) if parent in whys), "it is not called in the forward")


def _no_units(module: Module) -> str:
    return f"{type(module).__name__} drops neither single units of a Linear nor channels of a convolution"


def _regions(module: Module, path: str, whys: dict[str, str]) -> Iterator[_Region]:
    """The largest parts of a model whose forwards can be followed."""
    if not any(holds_dropout(part) for part in module.modules()):
        return
    tracer = _Tracer(_BLOCKS.get(type(module), "forward"))
    inner: dict[str, Any] = dict(module.named_children())
    try:
        graph = tracer.trace(module, _defaults(getattr(type(module), tracer.traced_func_name)))
    except Exception as error:  # whatever a user's forward does with a symbol
        if type(module) not in (torch.nn.ModuleList, torch.nn.ModuleDict):  # which have no forward
            whys[path] = f"the forward of {path or 'the model'} cannot be followed ({first_line(error)})"
    else:
        region = _Region(module, path, [node for node in graph.nodes if node.op.startswith("call_")])
        yield region
        if type(module) in _BLOCKS:
            whys[path] = f"in {type(module).__name__} only the feed-forward block is looked at"
            inner = {}
        else:
            inner = {str(node.target): region.module(node) for node in region.calls}
    for name, part in inner.items():
        if part is not None and next(part.children(), None) is not None:
            yield from _regions(part, _joined(path, name), whys)


def first_line(error: Exception) -> str:
    """What an error says, in short; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__


def _defaults(method: Any) -> dict[str, Any]:
    """Arguments that a caller may leave out are taken as left out, since a forward branches on them."""
    parameters = inspect.signature(method).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


@contextmanager
def _untouched(model: Module) -> Iterator[None]:
    """Forget what forwards write into their modules meanwhile, and what they draw."""
    kept = [(module, dict(vars(module))) for module in model.modules()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for module, attributes in kept:
                vars(module).clear()
                vars(module).update(attributes)


def _judge(region: _Region, node: fx.Node, uses: dict[Module, int], sample_dim: int | None, found: Found) -> None:
    """Add one call to the chains, or to what is left."""
    module = region.module(node)
    if module is None:
        if node.op == "call_function" and drops(node.target):
            owner = next(reversed(node.meta.get("nn_module_stack") or {"": None}), "")
            name = f"{_joined(region.path, owner)}:{getattr(node.target, '__name__', node.target)}"
            count = sum(other.startswith(name) for other in found.skipped)
            found.skipped[f"{name}{count}"] = (
                "a function is called, which nothing can be told; make it a layer, torch.nn.Dropout"
            )
        return
    if not holds_dropout(module):
        return
    path = region.path_of(node)
    chain = _chain(region, node, module, path, uses)
    if isinstance(chain, str):
        found.skipped[path] = chain
        return
    if DROPOUTS[type(module)] in CONVOLUTIONS:
        sample_dim = 0
    elif sample_dim is None:
        attention = getattr(region.root, "self_attn", None)
        sample_dim = int(type(region.root) in _BLOCKS and not getattr(attention, "batch_first", True))
    found.chains.append(Chain(module, path, *chain, sample_dim))


def _chain(
    region: _Region, node: fx.Node, module: Module, path: str, uses: dict[Module, int]
) -> tuple[Module | None, str, tuple[Callable[[Any], Any], ...], dict[str, Module]] | str:
    """The chain from what computes a call's input to what reads its output; or why nothing can be compacted."""
    kind = DROPOUTS.get(type(module))
    if kind is None:
        return _no_units(module)
    if getattr(module, "shared_dims", ()):
        return "it shares dimensions already, shared_dims"
    if _is_watched(module):
        return "it has hooks, which would be shown thinned values"
    before, before_path, between, why = _producer(region, node, kind, uses)
    after = _consumers(region, node, kind)
    is_channel = kind in CONVOLUTIONS
    has_activation = any(not isinstance(one, torch.nn.Identity) for one in between)
    if not after and not (before and (has_activation or is_channel)):
        return why or "what it leaves goes elsewhere than into layers with weights, and no activation comes before it"
    return before, before_path, between, after


def _producer(
    region: _Region, node: fx.Node, kind: type[Module], uses: dict[Module, int]
) -> tuple[Module | None, str, tuple[Callable[[Any], Any], ...], str]:
    """The layer with weights that computes a call's input, its path, what comes between; or why there is none."""
    between: tuple[Callable[[Any], Any], ...] = ()
    at = node.args[0] if node.args else None
    while isinstance(at, fx.Node):
        module = region.module(at)
        if len(at.users) > 1:
            return None, "", (), f"what it drops from ({at.target}) is read elsewhere, too"
        if _is_elementwise(module, at):
            if module is not None and _is_watched(module):
                return None, "", (), f"{region.path_of(at)} has hooks, which would be shown thinned values"
            between = (module or _function(at), *between)
            at = at.args[0]
            continue
        why = _unfit(module, kind, at)
        if why is None and module is not None and uses[module] > 1:
            why = f"{region.path_of(at)} is called several times"
        if why is None:
            return module, region.path_of(at), between, ""
        return None, "", (), why
    return None, "", (), "what it drops from is an input of the model"


def _function(node: fx.Node) -> Callable[[Any], Any]:
    """What a call does to its first argument."""
    rest, named = node.args[1:], node.kwargs
    if node.op == "call_method":
        return operator.methodcaller(str(node.target), *rest, **named)
    target: Any = node.target
    return lambda input: target(input, *rest, **named)


def _consumers(region: _Region, node: fx.Node, kind: type[Module]) -> dict[str, Module]:
    """Layers that read a call's output, if nothing else does."""
    after = {}
    for user in node.users:
        module = region.module(user)
        if module is None or _unfit(module, kind, user) or user.args != (node,) or user.kwargs:
            return {}
        after[region.path_of(user)] = module
    return after


def _is_elementwise(module: Module | None, node: fx.Node) -> bool:
    """Whether a call does the same to each element of its first argument, and reads no other value."""
    if not node.args or node.all_input_nodes != [node.args[0]]:
        return False
    if module is not None:
        return type(module) in _ACTIVATIONS
    if node.op == "call_method":
        return node.target in _METHODS
    return node.target in ELEMENTWISE


def _unfit(module: Module | None, kind: type[Module], node: fx.Node) -> str | None:
    """Why a layer beside a dropout layer cannot be thinned; None if it can."""
    wanted = CONVOLUTIONS.get(kind, torch.nn.Linear)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    if type(module) is not wanted:
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            return f"{name} stands before it, whose running statistics need every channel"
        if wanted is torch.nn.Linear and isinstance(module, torch.nn.modules.conv._ConvNd):
            return "it drops single elements of maps; Dropout1d to Dropout3d drop channels"
        return f"{name} stands before it, where {wanted.__name__} and an elementwise activation are looked for"
    assert module is not None
    if _is_watched(module):
        return f"{name} has hooks, which would be shown thinned values"
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        if module.groups != 1 or module.padding_mode != "zeros":
            return f"{name} has groups or a padding other than zeros"
        is_even = any(d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        if module.padding == "same" and is_even:
            return f"{name} pads more on one side"
    return None


def _is_watched(module: Module) -> bool:
    """Whether hooks see what goes into a module or comes out of it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
