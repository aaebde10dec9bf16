"""Batchwise dropout: groups of samples share masks, so that a step trains the thinned network, which is smaller.

Reference: Graham, Reizenstein, Robinson: Efficient batchwise dropout training using submatrices (2015).
"""

from __future__ import annotations

from typing import Literal, TypeVar, overload

from torch.nn import Module

from puredrop._hints import hints
from puredrop._text import listed
from puredrop.conversion import SEED_HINT
from puredrop.nn.keyed import HasKey
from puredrop.pinning import pinned, unwrapped
from puredrop.thinning._layers import BatchwiseLayer, Role, swap_class
from puredrop.thinning._masks import Ranks
from puredrop.thinning._report import Thinned
from puredrop.thinning.chains import Chain, ChainSearch, find_chains
from puredrop.thinning.groups import Groups, GroupSplit

__all__ = ["Chain", "GroupSplit", "Thinned", "batchwise", "find_chains"]

M = TypeVar("M", bound=Module)


@overload
def batchwise(
    model: M,
    groups: int | Literal["auto"] = "auto",
    *,
    sample_dim: int | None = None,
    ranks: Ranks = "own",
    report: Literal[False] = False,
) -> M: ...


@overload
def batchwise(
    model: M,
    groups: int | Literal["auto"] = "auto",
    *,
    sample_dim: int | None = None,
    ranks: Ranks = "own",
    report: Literal[True],
) -> tuple[M, Thinned]: ...


@hints(seed=SEED_HINT, key=SEED_HINT)
def batchwise(
    model: M,
    groups: int | Literal["auto"] = "auto",
    *,
    sample_dim: int | None = None,
    ranks: Ranks = "own",
    report: bool = False,
) -> M | tuple[M, Thinned]:
    """Let groups of samples share their masks, and train only what a group keeps of its layers.

    Use it to train wide networks with dropout faster than without it, on the CPU. Thinned are chains of Linear,
    elementwise activation, dropout, Linear, of any length, with or without dropout of the input; convolutions with
    dropout of channels; and the feed-forward blocks of Transformers, where all tokens of a group share a mask. Outputs
    and gradients equal, to rounding, those of the same masks on the whole layers. Layers stay the same objects, and
    weights, state_dict and evaluation do not change. `puredrop.revert(model)` undoes it.

    Args:
        model: any module, changed in place. Its forward is run once with symbols (torch.fx) to find the chains.
        groups: number of groups of nearly equal size in each batch; more groups mean less noise and less speed. A
            batch with fewer samples than groups has one sample in each group. "auto": one group for every 128 rows,
            at most 16.
        sample_dim: dimension of the samples; if not given, the first, and in torch's Transformer layers the one that
            their batch_first says. Dropout of channels needs samples in the first.
        ranks: "own" gives every process sub-networks of its own; "same" gives all processes the same ones, which needs
            a pinned model.
        report: whether a `Thinned` is returned as well.

    Returns:
        The model, typed as given; with `report=True` the pair of the model and a `Thinned`, which lists the thinned
        layers, and what was skipped and why.

    Raises:
        TypeError: if groups is neither "auto" nor an integer.
        ValueError: if groups is below 1, ranks is neither "own" nor "same", the model runs batchwise already or is
            pinned, or no part of it can be thinned.

    Reference: Graham, Reizenstein, Robinson: Efficient batchwise dropout training using submatrices (2015).

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 2)
    ... )
    >>> model = batchwise(model, groups=2)
    >>> model(torch.randn(6, 8)).shape
    torch.Size([6, 2])
    """
    rule, root = Groups(groups), unwrapped(model)
    if ranks not in ("own", "same"):
        raise ValueError(f"ranks is {ranks!r}; expected 'own' or 'same'")
    if any(isinstance(module, BatchwiseLayer) for module in root.modules()):
        raise ValueError("model runs batchwise already; undo that first: puredrop.revert(model)")
    search = find_chains(root, sample_dim)
    if not search.chains:
        reasons = listed((f"{path or '(model)'}: {why}" for path, why in search.skipped.items()), separator="; ")
        raise ValueError(
            "model has nothing to compact: expected Linear or convolution, elementwise activation, Dropout (of "
            f"channels after a convolution), Linear or convolution; {reasons or 'it has no dropout layer'}"
        )
    if pinned(root) is not None and any(not isinstance(chain.site, HasKey) for chain in search.chains):
        raise ValueError("model is pinned; call batchwise first: run.release(), batchwise, then reproducible again")
    for module, role in _roles(search, rule, ranks).items():
        swap_class(module, role)
    return (model, Thinned(root, rule, search.chains, search.skipped)) if report else model


def _roles(search: ChainSearch, rule: Groups, ranks: Ranks) -> dict[Module, Role]:
    """Return the role of each layer of the chains."""
    roles: dict[Module, Role] = {}

    def role_of(module: Module, chain: Chain) -> Role:
        return roles.setdefault(module, Role(type(module), rule, chain.sample_dim, ranks))

    uses: dict[Module, list[Chain]] = {}
    for chain in search.chains:
        uses.setdefault(chain.site, []).append(chain)
    for site, chains in uses.items():
        role = role_of(site, chains[0])
        # A layer that is used in several places cannot tell them apart, so it does what is right in all of them.
        role.packs = all(chain.after for chain in chains if chain.before)
        if any(chain.path in search.skipped for chain in chains):
            role.dense = "each"
        elif not all(chain.before for chain in chains):
            role.dense = "take"
        for chain in chains:
            if chain.before is not None:
                role_of(chain.before, chain).dropout = site
            for module in chain.after.values():
                role_of(module, chain)
    return roles
