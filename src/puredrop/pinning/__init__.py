"""Pinned models: masks that depend on nothing but seed, site, step, sample and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.nn import Module

from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey
from puredrop.pinning._batches import Batches
from puredrop.pinning._compilers import tell_compilers
from puredrop.pinning._forward import Forward
from puredrop.pinning._hooks import Hooks, may_call
from puredrop.pinning._names import named, unwrapped
from puredrop.pinning._run import Run, let_go
from puredrop.pinning._samples import Samples, Windows
from puredrop.pinning._sites import Keys, PinnedSite, SharedSite
from puredrop.rng import Key

__all__ = ["Run", "Samples", "pinned", "reproducible", "unwrapped"]


def reproducible(
    model: Module,
    seed: int = 0,
    name: str = "",
    *,
    sample_dim: int | None = None,
    sample_dims: Mapping[str, int | None] | None = None,
    windows: Windows | None = None,
    mesh: Any = None,
    dp_group: Any = None,
    dealt: Literal["batches", "rows"] = "batches",
    functional: bool | None = None,
) -> Run:
    """Pin a model: from now on its masks are functions of seed, name, site, step, call and sample alone.

    So they are the same however the batch is split, on however many processes, compiled or not, with activation
    checkpointing or without, after a restart, and whatever else draws random numbers. Our layers, torch's, and
    functional dropout are pinned; what draws random numbers of its own is not (`puredrop.sites` lists it), and a layer
    with a key of its own keeps it. A site's key is `Key(seed).fold_in(name).fold_in(path).fold_in(step).fold_in(call)`.

    Args:
        model: any module, wrapped (DDP, FSDP, compile, checkpointing) or not.
        seed: any integer.
        name: tells models with one seed apart.
        sample_dim: the dimension of the samples in the model's inputs and sites; 0 if not given.
        sample_dims: of single sites, by path; None for what belongs to no sample.
        windows: path of a site -> the logical tensor of which it sees a part, as a `Window` (of one process's samples)
            or a function from the tensor to one; None says that it sees the whole. For plain tensors between tensor
            parallel layers; DTensors carry theirs.
        mesh: DeviceMesh of the processes that share a step's samples, or
        dp_group: their process group; without both, all processes, which is said in a warning.
        dealt: how these share them: a forward's samples are their batches one after the other, or their rows in turn,
            as torch's DistributedSampler deals them, so that masks meet the samples that they meet on one process.
        functional: whether functions of torch's drop in the forward; if not given, the first forward shows.

    Returns:
        The run: advance its step by `attach(optimizer)` or `advance()`. Also a context manager that lets go at the end.

    Raises:
        TypeError: if the model is no module, or the seed no integer.
        ValueError: if it is pinned already, is a DataParallel, or two arguments exclude each other.

    >>> import torch, puredrop
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    >>> run = puredrop.reproducible(model, seed=0)
    >>> x = torch.ones(8, 4)
    >>> whole = model(x)
    >>> run.step = 0
    >>> torch.equal(whole, torch.cat([model(x[:4]), model(x[4:])]))
    True
    """
    root = unwrapped(model)
    if mesh is not None and dp_group is not None:
        raise ValueError("mesh and dp_group are given; expected one of them")
    if dealt not in ("batches", "rows"):
        raise ValueError(f"dealt is {dealt!r}; expected 'batches' or 'rows'")
    base = Key(seed).fold_in(name)
    other = pinned(root)
    if other is not None:
        if not other.is_copy:
            raise ValueError("model is pinned already; release it first: run.release()")
        let_go(other)  # what it was copied from goes on
    modules = list(named(root))
    droppers = [module for _, module in modules if holds_dropout(module)]
    foreign = [module for module in droppers if not isinstance(module, HasKey)]
    is_guessed = sample_dim is None and any(getattr(module, "batch_first", True) is False for _, module in modules)
    keys = Keys(base, sample_dims or {}, windows or {})
    batches = Batches(is_guessed, mesh, dp_group, dealt)
    hooks = Hooks([(m, p, m in foreign) for p, m in modules if m is not root and (m in foreign or may_call(m))])
    forward = Forward(root, keys, batches, hooks, droppers, sample_dim or 0, True if foreign else functional)
    keys.forward = forward
    for path, module in modules:
        if isinstance(module, HasKey):
            _pin(module, keys.site(path, (), module.samples_in(sample_dim or 0)))
    root.register_forward_pre_hook(forward.before, prepend=True, with_kwargs=True)
    root.register_forward_hook(forward.after, always_call=True)
    tell_compilers()
    return Run(seed, name, forward)


def pinned(root: Module) -> Forward | None:
    """What a model is pinned by, if it is."""
    hooks = (getattr(hook, "__self__", None) for hook in root._forward_pre_hooks.values())
    return next((one for one in hooks if isinstance(one, Forward)), None)


def _pin(layer: HasKey, site: PinnedSite) -> None:
    """Give a layer its site, beside those of other models that it is in; a key of its own it keeps."""
    key: Any = layer.key
    others = key.sites if isinstance(key, SharedSite) else (key,) if isinstance(key, PinnedSite) else ()
    if key is None or others:
        vars(layer)["key"] = SharedSite.of([*others, site])
