"""Batchwise dropout: groups of samples share masks, so that a step trains the thinned network itself, which is smaller.

Reference: Graham, Reizenstein, Robinson: Efficient batchwise dropout training using submatrices (2015).
"""

from __future__ import annotations

from typing import Literal

from torch.nn import Module

from puredrop.nn.keyed import HasKey
from puredrop.pinning import pinned, unwrapped
from puredrop.thinning._layers import Batchwise, Part, swap
from puredrop.thinning._masks import Ranks
from puredrop.thinning._report import Thinned
from puredrop.thinning.chains import Chain, Found, find, first_line
from puredrop.thinning.groups import Groups, GroupSplit

__all__ = ["Chain", "GroupSplit", "Thinned", "batchwise", "find", "first_line"]


def batchwise(
    model: Module, groups: int | Literal["auto"] = "auto", *, sample_dim: int | None = None, ranks: Ranks = "own"
) -> Thinned:
    """Have groups of samples share their masks from now on, and run what a group leaves of its layers, in training.

    Found are chains of Linear, elementwise activation, dropout, Linear, of any length, with dropout of the input or
    without; of convolutions with dropout of channels; and the feed-forward blocks of Transformers, whose masks the
    tokens of a group share. A step equals, to rounding, that of the same masks on the whole layers: outputs, all
    gradients. Layers stay the objects they are; weights, state_dict and evaluation do not change.

    Args:
        model: any module, changed in place; `report.revert()` or `puredrop.revert(model)` undoes it. Its forward is run
            once with symbols (torch.fx), to see what follows what.
        groups: into how many groups of nearly equal size each batch is split: more make less noise and less speed.
            "auto": one for every 128 rows, at most 16.
        sample_dim: the dimension of the samples; if not given, the first, in torch's Transformer layers as batch_first
            says. Channels are dropped from samples in the first.
        ranks: whether processes have "own" sub-networks, or all the "same" ones, which needs a pinned model.

    Returns:
        What was done, and what was not and why; it prints.

    Raises:
        TypeError, ValueError: if groups is neither "auto" nor a positive integer, or ranks neither "own" nor "same".
        ValueError: if the model runs batchwise already, is pinned, or has nothing that can be compacted. More groups
            than samples are an error in the forward.

    Reference: Graham, Reizenstein, Robinson: Efficient batchwise dropout training using submatrices (2015).

    >>> import torch
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 2)
    ... )
    >>> report = batchwise(net, groups=2)
    >>> net(torch.randn(6, 8)).shape
    torch.Size([6, 2])
    >>> report.revert()
    """
    rule, root = Groups(groups), unwrapped(model)
    if ranks not in ("own", "same"):
        raise ValueError(f"ranks is {ranks!r}; expected 'own' or 'same'")
    if any(isinstance(module, Batchwise) for module in root.modules()):
        raise ValueError("model runs batchwise already; revert it first: report.revert(), or puredrop.revert(model)")
    found = find(root, sample_dim)
    if not found.chains:
        why = "".join(f"; {path or '(model)'}: {reason}" for path, reason in found.skipped.items())
        raise ValueError(
            "model has nothing to compact: looked for Linear or convolution, elementwise activation, Dropout (of "
            f"channels after a convolution), Linear or convolution{why or '; it has no dropout layer'}"
        )
    if pinned(root) is not None and any(not isinstance(chain.site, HasKey) for chain in found.chains):
        raise ValueError("model is pinned; call batchwise first: run.release(), batchwise, then reproducible again")
    _play(found, rule, ranks)
    return Thinned(root, rule, found.chains, found.skipped)


def _play(found: Found, rule: Groups, ranks: Ranks) -> None:
    """Give each layer its part."""
    parts: dict[Module, Part] = {}

    def part_of(module: Module, chain: Chain) -> Part:
        return parts.setdefault(module, Part(type(module), rule, chain.sample_dim, ranks))

    for site in {chain.site for chain in found.chains}:
        chains = [chain for chain in found.chains if chain.site is site]
        part = part_of(site, chains[0])
        # One layer in several places cannot tell them apart: it does what is right in all of them.
        part.packs = all(chain.after for chain in chains if chain.before)
        if any(chain.path in found.skipped for chain in chains):
            part.dense = "each"
        elif not all(chain.before for chain in chains):
            part.dense = "take"
        for chain in chains:
            if chain.before is not None:
                part_of(chain.before, chain).dropout = site
            for module in chain.after.values():
                part_of(module, chain)
    for module, part in parts.items():
        swap(module, part)
