"""Pinned models, whose masks depend on nothing but seed, name, site, step, call, sample and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.nn import Module

from puredrop._hints import hints
from puredrop._torch import forward_pre_hooks
from puredrop.inspection.frames import Hooks, may_call
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey
from puredrop.pinning._batches import Batches
from puredrop.pinning._compilers import tell_compilers
from puredrop.pinning._forward import Forward
from puredrop.pinning._names import named, unwrapped
from puredrop.pinning._run import Run, unpin
from puredrop.pinning._samples import Samples, Windows
from puredrop.pinning._sites import Keys, PinnedSite, SharedSite
from puredrop.rng import Key

__all__ = ["Run", "Samples", "pinned", "reproducible", "unwrapped"]


@hints(key="the seed of all masks is given as seed=", p="rates belong to the layers")
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
    sharding: Literal["batches", "rows"] = "batches",
    functional: bool | None = None,
) -> Run:
    """Pin a model: make its masks functions of seed, name, site, step, call and sample alone.

    Use it to get the same masks however the batch is split, on however many processes, compiled or not, with or without
    activation checkpointing, after a restart, and whatever else draws random numbers. Pinned are our layers, torch's
    layers and functional dropout. Modules that draw random numbers of their own are not (`puredrop.sites` lists them),
    and a layer with a key of its own keeps it. A site's key is
    `Key(seed).fold_in(name).fold_in(path).fold_in(step).fold_in(call)`.

    Args:
        model: any module, bare or wrapped by DDP, FSDP, torch.compile or checkpointing.
        seed: any integer.
        name: text that tells models with one seed apart.
        sample_dim: dimension of the samples in the model's inputs and sites; 0 if not given.
        sample_dims: path of a site -> dimension of its samples, where it differs; None for a tensor that belongs to no
            sample, such as a weight.
        windows: path of a site -> the logical tensor of which the site sees a part: a `Window` for this process's
            samples, a function from the tensor to one, or None for a site that sees the whole. Needed for plain tensors
            between tensor-parallel layers; DTensors carry their own.
        mesh: DeviceMesh of the processes that share the samples of a step, or
        dp_group: their process group. Without both all processes share them, and a warning says so.
        sharding: "batches" if the processes' batches follow one after the other in the step, "rows" if the processes
            take rows in turn, as torch's DistributedSampler does.
        functional: whether the forward calls functional dropout of torch's; if not given, the first forward shows.

    Returns:
        The run, a handle to keep while the model trains: `run.attach(optimizer)` or `run.advance()` advances the step,
        `run.release()` or the end of a `with` block unpins the model. The model itself is called as before.

    Raises:
        TypeError: if the model is not a module, or the seed not an integer.
        ValueError: if the model is pinned already or is a DataParallel, or if both mesh and dp_group are given.

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
    if sharding not in ("batches", "rows"):
        raise ValueError(f"sharding is {sharding!r}; expected 'batches' or 'rows'")
    base = Key(seed).fold_in(name)
    other = pinned(root)
    if other is not None:
        if not other.is_copy:
            raise ValueError("model is pinned already; release it first: run.release()")
        unpin(other)  # the model it was copied from stays pinned
    modules = list(named(root))
    droppers = [module for _, module in modules if holds_dropout(module)]
    foreign = {module for module in droppers if not isinstance(module, HasKey)}
    is_guessed = sample_dim is None and any(getattr(module, "batch_first", True) is False for _, module in modules)
    keys = Keys(base, sample_dims or {}, windows or {})
    batches = Batches(is_guessed, mesh, dp_group, sharding)
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
    """Return the forward that pins a model, None if it is not pinned."""
    hooks = (getattr(hook, "__self__", None) for hook in forward_pre_hooks(root))
    return next((hook for hook in hooks if isinstance(hook, Forward)), None)


def _pin(layer: HasKey, site: PinnedSite) -> None:
    """Give a layer its site, next to those of other pinned models it belongs to; a key of its own is kept."""
    key: Any = layer.key
    others = key.sites if isinstance(key, SharedSite) else (key,) if isinstance(key, PinnedSite) else ()
    if key is None or others:
        vars(layer)["key"] = SharedSite.of([*others, site])
