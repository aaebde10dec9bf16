"""What other processes have to do with a mask: whose samples come before ours, and which tensors are only parts."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from puredrop.ops import is_spread

__all__ = ["Ranks", "check_whole", "holds_parts", "ranks_of"]


class Ranks:
    """One process among those that share a step's samples.

    Args:
        rank, size: its number, and how many there are.
        group: in which they can talk; None for one that needs no talk.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.group = group

    def check_equal(self, seen: int, weighted: int) -> None:
        """Compare what the processes have been given in this step.

        Args:
            seen: samples on this process.
            weighted: their sum over forwards, each times its number, so that their order tells too.

        Raises:
            RuntimeError: on every process, if they differ: then nobody knows which samples come before his.
        """
        if self.size == 1:
            return
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        extremes = torch.tensor([seen, -seen, weighted, -weighted], device=device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.group)
        highest, lowest, later, earlier = extremes.tolist()
        if highest != -lowest or later != -earlier:
            raise RuntimeError(
                f"this process was given {seen} samples in this step, others {-lowest} to {highest}, or in forwards of "
                "other sizes; with unequal batches masks have no place among the step's samples: name them, "
                "run.sample_ids = ids"
            )


def ranks_of(mesh: Any, group: Any, root: Module) -> Ranks:
    """The processes that share the samples: as given, else all there are, which is said.

    Args:
        mesh: DeviceMesh of the data-parallel dimensions, or None.
        group: their ProcessGroup, or None.
        root: the model.

    Raises:
        ValueError: if a model in parallel parts is given neither, and the parts do not take all processes.
    """
    if mesh is not None:
        if mesh.ndim == 1:
            return Ranks(mesh.get_local_rank(), mesh.size(), mesh.get_group())
        return Ranks(mesh.mesh.flatten().tolist().index(dist.get_rank()), mesh.size(), mesh._flatten().get_group())
    if group is not None:
        return Ranks(dist.get_rank(group), dist.get_world_size(group), group)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    world = dist.get_world_size()
    parts, fully_sharded = _parts(root)
    sizes = {one.device_mesh.size() for one in parts}
    if sizes == {world} and not fully_sharded:
        return Ranks()  # one model on all processes: they see the same samples
    if sizes:
        raise ValueError(
            f"the model's parts lie on {sorted(sizes)} of {world} processes"
            f"{', and it is fully sharded too' if fully_sharded else ''}; say which of these share the samples of a "
            "step: reproducible(..., mesh=device_mesh['dp'])"
        )
    ranks = Ranks(dist.get_rank(), world, dist.group.WORLD)
    warnings.warn(
        f"reproducible: rank {ranks.rank} of {world} takes its place among the step's samples from the process group "
        "(ranks' batches one after the other); say it with mesh=, dp_group= or run.sample_ids",
        stacklevel=2,
    )
    return ranks


def _parts(root: Module) -> tuple[list[Any], set[Any]]:
    """Parameters that tensor parallelism has cut, and the meshes of FSDP, whose own are whole when they are used."""
    fully_sharded: set[Any] = set()
    if "torch.distributed.tensor" not in sys.modules:
        return [], fully_sharded
    for module in root.modules():
        state = getattr(module, "_get_fsdp_state", None)
        group = getattr(state(), "_fsdp_param_group", None) if state else None
        if group is not None:
            fully_sharded.add(group.mesh_info.mesh)
    spread: list[Any] = [one for one in root.parameters() if is_spread(one)]
    cut = [one for one in spread if any(placement.is_shard() for placement in one.placements)]
    return [one for one in cut if one.device_mesh not in fully_sharded], fully_sharded


def holds_parts(root: Module) -> bool:
    """Whether a model's layers are cut over processes."""
    return bool(_parts(root)[0])


def check_whole(input: Tensor, path: str) -> None:
    """Refuse a plain tensor that is a part of another: torch's parallel layers pass such parts on by default.

    Args:
        input: a tensor between the layers of a model in parallel parts.
        path: of the site.

    Raises:
        ValueError: if it came from a part of a tensor, or cannot be told.
    """
    fix = (
        f"say which part it is: reproducible(..., windows={{{path!r}: puredrop.Window(shape, offset)}}) (None for a "
        "whole tensor), or let the layer before it return a DTensor (use_local_output=False)"
    )
    if input.grad_fn is None:
        raise ValueError(
            f"site {path!r} drops from a plain tensor without a history in a model in parallel parts; {fix}"
        )
    todo, known = [input.grad_fn], set()
    while todo:
        node = todo.pop()
        if node in known:
            continue
        known.add(node)
        spec = getattr(node, "dtensor_spec", None)
        if spec is None:
            todo += [one for one, _ in node.next_functions if one is not None]
        elif any(not one.is_replicate() for one in spec.placements):
            raise ValueError(
                f"site {path!r} drops from a plain tensor of shape {tuple(input.shape)} that is a part of one spread "
                f"over {spec.mesh.size()} processes ({', '.join(map(str, spec.placements))}); {fix}"
            )
