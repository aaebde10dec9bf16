"""One member as a module, and several as one module that can be deployed."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import nn
from puredrop._torch import with_parameters
from puredrop.conversion import Swapped, as_ours
from puredrop.members.engine import MemberMasks
from puredrop.members.outputs import Task, reader
from puredrop.members.sites import SiteUse
from puredrop.members.thinned import RunStep

__all__ = ["FROZEN_FORMAT", "Frozen", "Masked", "Select", "member", "number_of"]

_SITES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.DropPath)


class Masked(Module):
    """A site of one member that multiplies by its mask.

    Args:
        factors: 0 where the member drops, 1/(1-p) elsewhere; without the rows' dimension.
    """

    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with the member's mask applied."""
        return input * self.factors.to(input.dtype)


class Select(Module):
    """A site of one member that selects the kept units.

    Args:
        units: int64, their numbers, along dimension 1.
    """

    units: Tensor

    def __init__(self, units: Tensor) -> None:
        super().__init__()
        self.register_buffer("units", units)

    def forward(self, input: Tensor) -> Tensor:
        """Return the kept units of the input."""
        return input.index_select(1, self.units)


def member(
    model: Module,
    number: int,
    members: MemberMasks,
    uses: Sequence[SiteUse],
    runs: Sequence[Sequence[RunStep]],
    shared: bool,
) -> Module:
    """Return a member as an ordinary module in eval mode.

    Args:
        model: the ensemble's, unwrapped.
        number: of the member.
        members: which functions the members are.
        uses: of one forward.
        runs: of layers of which a member needs only a part.
        shared: whether what is the same in all members stays the model's own parameters and buffers, or is copied.

    Raises:
        ValueError: for what drops and is no layer of its own, or is used twice.
    """
    keep = {use.path: _kept(number, members, use) for use in uses}
    rate = {use.path: use.p for use in uses}
    dim = {use.path: use.dim for use in uses}
    _check(model, uses)
    memo: dict[int, Any] = {}
    if shared:
        memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if any(isinstance(module, Swapped) for module in model.modules()):
        raise ValueError("model runs batchwise; revert it first: puredrop.revert(model)")
    root = copy.deepcopy(model, memo).eval()
    done = set()
    with torch.no_grad():
        for steps in runs:
            if all(step.site in keep and 0 < rate[step.site] < 1 and _is_simple(keep[step.site]) for step in steps):
                _thin(root, steps, keep, rate)
                done |= {step.site for step in steps}
        for path, mask in keep.items():
            if path not in done:
                scale = _scale(root.get_submodule(path), rate[path])
                shown = mask.squeeze(0).unsqueeze(dim[path]) if dim[path] else mask.squeeze(0)
                _put(root, path, Masked(shown.to(torch.float32) * scale))
    first = next(root.parameters(), None)
    return root if first is None else root.to(first.device)  # masks are drawn where the model is not


def _kept(number: int, members: MemberMasks, use: SiteUse) -> Tensor:
    """Return the mask of the member at one use, bool, in the shape of the use."""
    if math.isnan(use.p):
        raise ValueError(f"member: {use.path} draws more than decisions on elements, which no mask holds")
    masks = members.masks(use.path, use.call)
    return masks.keep([number], use.p, use.units, 0, torch.device("cpu")).view(use.sizes)


def _check(model: Module, uses: Sequence[SiteUse]) -> None:
    for use in uses:
        layer = model.get_submodule(use.path) if ":" not in use.path and "/" not in use.path else None
        ours = layer if layer is None or isinstance(layer, _SITES) else as_ours(layer)
        if not isinstance(ours, _SITES):
            raise ValueError(
                f"member: {use.path} drops and is no dropout layer, so that no mask can stand in its place "
                "(predict runs it all the same)"
            )
        if use.call:
            raise ValueError(
                f"member: {use.path} is used several times in a forward; give each place a layer of its own"
            )
        if use.sizes[0] != 1 or use.groups != 1:
            raise ValueError(f"member: {use.path} drops from a tensor that does not have one row for each sample")


def _scale(layer: Module, p: float) -> float:
    """Return the factor of kept units."""
    is_unscaled = getattr(layer, "scale_by_keep", True) is False
    return 1.0 if is_unscaled else 0.0 if p == 1 else 1 / (1 - p)


def _is_simple(mask: Tensor) -> bool:
    """Return whether there is one decision for each unit, and the member keeps any unit."""
    return mask.dim() >= 2 and mask.numel() == mask.shape[1] and bool(mask.any())


def _thin(root: Module, steps: Sequence[RunStep], keep: dict[str, Tensor], rate: dict[str, float]) -> None:
    """Replace the layers of a run by ones that have the member's units only."""
    units = [keep[step.site].flatten().nonzero().flatten() for step in steps]
    first = steps[0]
    if first.before is not None:
        _exchange(root, first.before, None, units[0], 1.0)
    for i, step in enumerate(steps):
        rows = units[i + 1] if i + 1 < len(steps) else None
        _exchange(root, step.reader, units[i], rows, 1 / (1 - rate[step.site]))
        is_open = i == 0 and first.before is None
        _put(root, step.site, Select(units[0]) if is_open else torch.nn.Identity())


def _exchange(root: Module, path: str, columns: Tensor | None, rows: Tensor | None, scale: float) -> None:
    """Replace a layer by one with fewer inputs and outputs."""
    old: Any = root.get_submodule(path)
    weight, bias = old.weight, old.bias
    if columns is not None:
        weight = weight[:, columns.to(weight.device)] * scale
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        bias = None if bias is None else bias[rows.to(weight.device)]
    bias = None if bias is None else torch.nn.Parameter(bias.clone())
    new = with_parameters(old, {"weight": torch.nn.Parameter(weight.contiguous()), "bias": bias})
    names = ("in_channels", "out_channels") if hasattr(old, "in_channels") else ("in_features", "out_features")
    for name, size in zip(names, (weight.shape[1], weight.shape[0]), strict=True):
        setattr(new, name, size)
    _put(root, path, new)


def _put(root: Module, path: str, module: Module) -> None:
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent).register_module(name, module)


FROZEN_FORMAT = 1
"""Format of a frozen ensemble: mean and unbiased variance of its members, in this order."""


class Frozen(Module):
    """Several members as one module in eval mode that computes their mean and variance.

    Args:
        members: as `member` makes them.
        task: "classification", "regression", or a function from what a member returns to the tensor that is averaged.
        class_dim: dimension of the classes.
    """

    frozen_format: Tensor
    _version = FROZEN_FORMAT

    def __init__(self, members: Sequence[Module], task: Task, class_dim: int) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.task = task
        self.class_dim = class_dim
        # Not in the state's keys, but it travels with an exported program; `_version` travels with a state.
        self.register_buffer("frozen_format", torch.tensor(FROZEN_FORMAT), persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        number = local_metadata.get("version", FROZEN_FORMAT)  # a file without metadata, as safetensors, has none
        if number != FROZEN_FORMAT:
            raise ValueError(
                f"frozen_format is {number}; expected {FROZEN_FORMAT}: another version of puredrop froze this "
                "ensemble; call freeze() again with this version"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Return the mean and the unbiased variance over members, of probabilities in a classification."""
        read = reader(self.task, self.class_dim)
        outputs = torch.stack([read(member(*arguments, **named)) for member in self.members])
        mean = outputs.mean(0)
        return mean, (outputs - mean).square().sum(0) / max(1, len(self.members) - 1)


def number_of(number: Any) -> int:
    """Return a member's number, or a number of members, checked.

    Raises:
        TypeError, ValueError: if it is no integer, or negative.
    """
    try:
        index = operator.index(number)
    except TypeError:
        raise TypeError(f"a member's number is {number!r}; expected an integer") from None
    if index < 0:
        raise ValueError(f"a member's number is {number}; expected 0 or more")
    return index
