"""Pinned models, whose masks depend on nothing but seed, name, site, step, call, sample and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.nn import Module

from puredrop._hints import hints
from puredrop.pinning._draws import Unpinned, UnpinnedWarning
from puredrop.pinning._names import unwrapped
from puredrop.pinning._pin import Settings, pin, pinned
from puredrop.pinning._report import PinReport, SiteRecord
from puredrop.pinning._run import Run, unpin
from puredrop.pinning._samples import Samples, Windows
from puredrop.rng import Key

__all__ = [
    "PinReport",
    "Run",
    "Samples",
    "SiteRecord",
    "Unpinned",
    "UnpinnedWarning",
    "pinned",
    "reproducible",
    "unwrapped",
]


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
    strict: bool = False,
) -> Run:
    """Pin a model: make its masks functions of seed, name, site, step, call and sample alone.

    Use it to get the same masks however the batch is split, on however many processes, compiled or not, with or without
    activation checkpointing, after a restart, and whatever else draws random numbers. Pinned are our layers, torch's
    layers and functional dropout; a layer with a key of its own keeps it. Code that draws random numbers of its own is
    not pinned: the first forward in training mode names it in an `UnpinnedWarning`, and `run.report` lists it. That
    forward also shows where samples lie, on a copy of the model with other numbers of samples, mostly without data: a
    site whose samples lie elsewhere is an error as soon as a step has several forwards or processes. A site's key is
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
        strict: refuse in the first forward what is not pinned, and sites whose samples' dimension is only assumed.

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
    settings = Settings(
        base, sample_dim, sample_dims or {}, windows or {}, mesh, dp_group, sharding, functional, strict
    )
    return Run(seed, name, pin(root, settings))
