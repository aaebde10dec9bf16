"""The act of pinning: sites for the layers of a model, and hooks that follow its forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.nn import Module

from puredrop._torch import forward_pre_hooks
from puredrop.inspection.frames import Hooks, may_call
from puredrop.inspection.watch import holds_dropout
from puredrop.nn.keyed import HasKey
from puredrop.pinning._batches import Batches
from puredrop.pinning._compilers import tell_compilers
from puredrop.pinning._first_forward import FirstForward
from puredrop.pinning._forward import Forward
from puredrop.pinning._names import named
from puredrop.pinning._samples import Windows
from puredrop.pinning._sites import Keys, PinnedSite, SharedSite
from puredrop.rng import Key

__all__ = ["Settings", "pin", "pinned"]


@dataclass(frozen=True)
class Settings:
    """Settings of a pinned model, as `reproducible` takes them.

    Args:
        base: key from which every site's key is folded.
        sample_dim, sample_dims, windows: where samples lie.
        mesh, group, sharding: processes that share the samples.
        functional: whether the forward calls functional dropout of torch's.
        strict: whether what is not pinned or only assumed is refused.
    """

    base: Key
    sample_dim: int | None
    sample_dims: Mapping[str, int | None]
    windows: Windows
    mesh: Any
    group: Any
    sharding: str
    functional: bool | None
    strict: bool

    def pin_copy(self, root: Module) -> Forward:
        """Pin a copy of a model, on one process, and return its forward."""
        return pin(root, replace(self, mesh=None, group=None, functional=True), is_copy=True)


def pin(root: Module, settings: Settings, is_copy: bool = False) -> Forward:
    """Pin a model.

    Args:
        root: the model, without wrappers.
        settings: its settings.
        is_copy: whether it is a copy for trials, whose first forward is not examined.
    """
    modules = list(named(root))
    droppers = [module for _, module in modules if holds_dropout(module)]
    foreign = {module for module in droppers if not isinstance(module, HasKey)}
    dim = settings.sample_dim
    is_guessed = dim is None and any(getattr(module, "batch_first", True) is False for _, module in modules)
    keys = Keys(settings.base, settings.sample_dims, settings.windows)
    batches = Batches(is_guessed, settings.mesh, settings.group, settings.sharding)
    hooks = Hooks([(m, p, m in foreign) for p, m in modules if m is not root and (m in foreign or may_call(m))])
    forward = Forward(root, keys, batches, hooks, droppers, dim or 0, True if foreign else settings.functional)
    if not is_copy:
        forward.examination = FirstForward(settings.pin_copy, settings.sample_dims, is_guessed, settings.strict)
        forward.observer = forward.examination
    keys.forward = forward
    for path, module in modules:
        if isinstance(module, HasKey):
            _give_site(module, keys.site(path, (), module.samples_in(dim or 0)))
    root.register_forward_pre_hook(forward.before, prepend=True, with_kwargs=True)
    root.register_forward_hook(forward.after, always_call=True)
    tell_compilers()
    return forward


def pinned(root: Module) -> Forward | None:
    """Return the forward that pins a model, None if it is not pinned."""
    hooks = (getattr(hook, "__self__", None) for hook in forward_pre_hooks(root))
    return next((hook for hook in hooks if isinstance(hook, Forward)), None)


def _give_site(layer: HasKey, site: PinnedSite) -> None:
    """Give a layer its site, next to those of other pinned models it belongs to; a key of its own is kept."""
    key: Any = layer.key
    others = key.sites if isinstance(key, SharedSite) else (key,) if isinstance(key, PinnedSite) else ()
    if key is None or others:
        vars(layer)["key"] = SharedSite.of([*others, site])
