"""Search for chains of layers that can run compacted, by following a model's forward with symbols (torch.fx)."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.nn import Module

from puredrop._text import first_line
from puredrop._torch import FEED_FORWARD, BatchNorm, ConvNd, has_hooks
from puredrop.functional.interception import drops
from puredrop.inspection.tracing import Tracer
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey
from puredrop.thinning._layers import CONVOLUTIONS, DROPOUTS
from puredrop.thinning._packed import ELEMENTWISE

__all__ = ["Chain", "ChainSearch", "find_chains"]

_ACTIVATIONS = tuple(
    getattr(torch.nn, name)
    for name in (
        *("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "ELU", "SELU", "CELU", "LeakyReLU", "Tanh", "Sigmoid", "Softplus"),
        *("Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Softsign", "Tanhshrink", "Identity"),
    )
)
_METHODS = ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_")
# Torch's Transformer layers branch on their arguments, so only their feed-forward method is followed.


@dataclass(frozen=True)
class Chain:
    """One use of a dropout layer, with the layers around it.

    Args:
        site, path: the dropout layer and its path.
        before, before_path: the layer with weights whose output is dropped, and its path; None where there is none.
        between: functions of one tensor between `before` and the dropout layer, in order.
        after: layers with weights that read the dropped tensor, by path; empty where anything else reads it.
        sample_dim: dimension of the samples.
    """

    site: Module
    path: str
    before: Module | None
    before_path: str
    between: tuple[Callable[[Any], Any], ...]
    after: dict[str, Module]
    sample_dim: int


@dataclass
class ChainSearch:
    """Result of a search.

    Args:
        chains: one for each use of a dropout layer that can run batchwise.
        skipped: path of each other place that drops -> the reason.
        calls: number of skipped calls of each function, by the function's name after the path of its module.
    """

    chains: list[Chain] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


class _ChainTracer(Tracer):
    """Tracer of a module's method, down to torch's layers and ours."""

    proxy_buffer_attributes = True  # writes to buffers are recorded instead of executed

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        """Return whether a module is one step of the trace."""
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, HasKey)


@dataclass
class _Region:
    """A traced part of the model.

    Args:
        root, path: the module and its path.
        calls: calls of modules and functions, in order.
    """

    root: Module
    path: str
    calls: list[fx.Node]

    def module(self, node: Any) -> Module | None:
        """Return the module that a node calls, None for any other node."""
        is_call = isinstance(node, fx.Node) and node.op == "call_module"
        return self.root.get_submodule(str(node.target)) if is_call else None

    def path_of(self, node: fx.Node) -> str:
        """Return the called module's path in the model."""
        return _joined(self.path, str(node.target))


def _joined(*parts: str) -> str:
    return ".".join(role for role in parts if role)


def find_chains(model: Module, sample_dim: int | None = None) -> ChainSearch:
    """Find the chains of a model, and the reason for each dropout that is in none.

    Args:
        model: any module; its forward is run with symbols in place of tensors, as torch.fx does.
        sample_dim: dimension of the samples; if None, the first, and in torch's Transformer layers the one that their
            batch_first says.
    """
    search, regions = ChainSearch(), []
    reasons: dict[str, str] = {}
    with _untouched(model):
        regions = list(_regions(model, "", reasons))
    uses: dict[Module, int] = {}
    for region in regions:
        for node in region.calls:
            if (module := region.module(node)) is not None:
                uses[module] = uses.get(module, 0) + 1
    for region in regions:
        for node in region.calls:
            _judge(region, node, uses, sample_dim, search)
    judged = {chain.path for chain in search.chains} | set(search.skipped)
    for path, module in model.named_modules():
        if holds_dropout(module) and path not in judged:
            search.skipped[path] = _reason_not_traced(path, module, reasons)
    return search


def _reason_not_traced(path: str, module: Module, reasons: dict[str, str]) -> str:
    if type(module) not in DROPOUTS:
        return _no_units(module)
    parents = ["", *(path[:i] for i, letter in enumerate(path) if letter == ".")]
    return next((reasons[parent] for parent in reversed(parents) if parent in reasons), "the forward does not call it")


def _no_units(module: Module) -> str:
    return f"{type(module).__name__} drops neither single units of a Linear nor channels of a convolution"


def _regions(module: Module, path: str, reasons: dict[str, str]) -> Iterator[_Region]:
    """Yield the largest parts of a model whose forwards can be traced."""
    if not any(holds_dropout(role) for role in module.modules()):
        return
    tracer = _ChainTracer(FEED_FORWARD.get(type(module), "forward"))
    inner: dict[str, Any] = dict(module.named_children())
    try:
        graph = tracer.trace(module, _defaults(getattr(type(module), tracer.traced_func_name)))
    except Exception as error:  # a user's forward may raise anything when it meets a symbol
        if type(module) not in (torch.nn.ModuleList, torch.nn.ModuleDict):  # which have no forward
            reasons[path] = f"the forward of {path or 'the model'} cannot be followed ({first_line(error, 100)})"
    else:
        region = _Region(module, path, [node for node in graph.nodes if node.op.startswith("call_")])
        yield region
        if type(module) in FEED_FORWARD:
            reasons[path] = f"in {type(module).__name__} only the feed-forward block is inspected"
            inner = {}
        else:
            inner = {str(node.target): region.module(node) for node in region.calls}
    for name, role in inner.items():
        if role is not None and next(role.children(), None) is not None:
            yield from _regions(role, _joined(path, name), reasons)


def _defaults(method: Any) -> dict[str, Any]:
    """Return the defaults of optional arguments: a forward branches on them, so they are not symbols."""
    parameters = inspect.signature(method).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


@contextmanager
def _untouched(model: Module) -> Iterator[None]:
    """Restore the attributes of all modules, and torch's generator, at the end."""
    saved = [(module, dict(vars(module))) for module in model.modules()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for module, attributes in saved:
                vars(module).clear()
                vars(module).update(attributes)


def _judge(
    region: _Region, node: fx.Node, uses: dict[Module, int], sample_dim: int | None, search: ChainSearch
) -> None:
    """Add one call to the chains or to the skipped places."""
    module = region.module(node)
    if module is None:
        if node.op == "call_function" and drops(node.target):
            owner = next(reversed(node.meta.get("nn_module_stack") or {"": None}), "")
            name = f"{_joined(region.path, owner)}:{getattr(node.target, '__name__', node.target)}"
            search.skipped[f"{name}{search.calls[name]}"] = (
                "it is a function call, which batchwise cannot change; make it a layer, torch.nn.Dropout"
            )
            search.calls[name] += 1
        return
    if not holds_dropout(module):
        return
    path = region.path_of(node)
    chain = _chain(region, node, module, path, uses)
    if isinstance(chain, str):
        search.skipped[path] = chain
        return
    if DROPOUTS[type(module)] in CONVOLUTIONS:
        sample_dim = 0
    elif sample_dim is None:
        attention = getattr(region.root, "self_attn", None)
        sample_dim = int(type(region.root) in FEED_FORWARD and not getattr(attention, "batch_first", True))
    search.chains.append(Chain(module, path, *chain, sample_dim))


def _chain(
    region: _Region, node: fx.Node, module: Module, path: str, uses: dict[Module, int]
) -> tuple[Module | None, str, tuple[Callable[[Any], Any], ...], dict[str, Module]] | str:
    """Return the layers before and after a call, or the reason why nothing can be compacted."""
    kind = DROPOUTS.get(type(module))
    if kind is None:
        return _no_units(module)
    if getattr(module, "shared_dims", ()):
        return "it shares dimensions already, shared_dims"
    if has_hooks(module):
        return "it has hooks, which would see thinned values"
    before, before_path, between, reason = _producer(region, node, kind, uses)
    after = _consumers(region, node, kind)
    is_channel = kind in CONVOLUTIONS
    has_activation = any(not isinstance(function, torch.nn.Identity) for function in between)
    if not after and not (before and (has_activation or is_channel)):
        return reason or "not only layers with weights read its output, and no activation comes before it"
    return before, before_path, between, after


def _producer(
    region: _Region, node: fx.Node, kind: type[Module], uses: dict[Module, int]
) -> tuple[Module | None, str, tuple[Callable[[Any], Any], ...], str]:
    """Return the layer that computes a call's input, its path and what comes between; or the reason why not."""
    between: tuple[Callable[[Any], Any], ...] = ()
    at = node.args[0] if node.args else None
    while isinstance(at, fx.Node):
        module = region.module(at)
        if len(at.users) > 1:
            return None, "", (), f"its input ({at.target}) is read elsewhere, too"
        if _is_elementwise(module, at):
            if module is not None and has_hooks(module):
                return None, "", (), f"{region.path_of(at)} has hooks, which would see thinned values"
            between = (module or _function(at), *between)
            at = at.args[0]
            continue
        reason = _unfit(module, kind, at)
        if reason is None and module is not None and uses[module] > 1:
            reason = f"{region.path_of(at)} is called several times"
        if reason is None:
            return module, region.path_of(at), between, ""
        return None, "", (), reason
    return None, "", (), "its input is an input of the model"


def _function(node: fx.Node) -> Callable[[Any], Any]:
    """Return a call as a function of its first argument."""
    arguments, named = node.args[1:], node.kwargs
    if node.op == "call_method":
        return operator.methodcaller(str(node.target), *arguments, **named)
    target: Any = node.target
    return lambda input: target(input, *arguments, **named)


def _consumers(region: _Region, node: fx.Node, kind: type[Module]) -> dict[str, Module]:
    """Return the layers that read a call's output, none if anything else reads it."""
    after = {}
    for user in node.users:
        module = region.module(user)
        if module is None or _unfit(module, kind, user) or user.args != (node,) or user.kwargs:
            return {}
        after[region.path_of(user)] = module
    return after


def _is_elementwise(module: Module | None, node: fx.Node) -> bool:
    """Return whether a call treats each element of its first argument alike, and reads no other value."""
    if not node.args or node.all_input_nodes != [node.args[0]]:
        return False
    if module is not None:
        return type(module) in _ACTIVATIONS
    if node.op == "call_method":
        return node.target in _METHODS
    return node.target in ELEMENTWISE


def _unfit(module: Module | None, kind: type[Module], node: fx.Node) -> str | None:
    """Return the reason why a neighbour of a dropout layer cannot be thinned; None if it can."""
    wanted = CONVOLUTIONS.get(kind, torch.nn.Linear)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    if type(module) is not wanted:
        if isinstance(module, BatchNorm):
            return f"{name} stands before it, whose running statistics need every channel"
        if wanted is torch.nn.Linear and isinstance(module, ConvNd):
            return "it drops single elements of maps; Dropout1d to Dropout3d drop channels"
        return f"{name} stands before it; expected {wanted.__name__} and an elementwise activation"
    assert module is not None
    if has_hooks(module):
        return f"{name} has hooks, which would see thinned values"
    if isinstance(module, ConvNd):
        if module.groups != 1 or module.padding_mode != "zeros":
            return f"{name} has groups or a padding other than zeros"
        is_even = any(d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        if module.padding == "same" and is_even:
            return f"{name} pads more on one side"
    return None
