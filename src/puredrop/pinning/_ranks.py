"""Processes that share a model or a step: the order of their samples, and tensors that are parts of others."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from puredrop._torch import flat_group, fsdp_mesh
from puredrop.ops import is_spread

__all__ = ["Ranks", "check_whole", "holds_parts", "ranks_of"]


class Ranks:
    """One process among those that share a step's samples.

    Args:
        rank: number of this process.
        size: number of processes.
        group: process group for communication; None for a single process.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.group = group

    def check_equal(self, count: int, weighted: int) -> None:
        """Check that the processes got equally many samples in this step, in forwards of equal sizes.

        Args:
            count: samples on this process.
            weighted: sum of the forwards' samples, each times the forward's number.

        Raises:
            RuntimeError: on every process, if they differ, since sample positions are ambiguous then.
        """
        if self.size == 1:
            return
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        extremes = torch.tensor([count, -count, weighted, -weighted], device=device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.group)
        highest, lowest, later, earlier = extremes.tolist()
        if highest != -lowest or later != -earlier:
            raise RuntimeError(
                f"this process got {count} samples in this step, others {-lowest} to {highest}, or in forwards of "
                "other sizes, so sample positions are ambiguous; set run.sample_ids = ids"
            )


def ranks_of(mesh: Any, group: Any, root: Module) -> Ranks:
    """Return the processes that share the samples: the given ones, else all, with a warning.

    Args:
        mesh: DeviceMesh of the data-parallel dimensions, or None.
        group: their ProcessGroup, or None.
        root: the model.

    Raises:
        ValueError: if neither is given for a model whose shards do not lie on all processes.
    """
    if mesh is not None:
        if mesh.ndim == 1:
            return Ranks(mesh.get_local_rank(), mesh.size(), mesh.get_group())
        return Ranks(mesh.mesh.flatten().tolist().index(dist.get_rank()), mesh.size(), flat_group(mesh))
    if group is not None:
        return Ranks(dist.get_rank(group), dist.get_world_size(group), group)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    world = dist.get_world_size()
    parts, fully_sharded = _parts(root)
    sizes = {part.device_mesh.size() for part in parts}
    if sizes == {world} and not fully_sharded:
        return Ranks()  # one model sharded over all processes, which see the same samples
    if sizes:
        raise ValueError(
            f"the model's shards lie on {sorted(sizes)} of {world} processes"
            f"{', and it is fully sharded too' if fully_sharded else ''}; say which processes share the samples of a "
            "step: reproducible(..., mesh=device_mesh['dp'])"
        )
    ranks = Ranks(dist.get_rank(), world, dist.group.WORLD)
    warnings.warn(
        f"reproducible: rank {ranks.rank} of {world} takes its place among the step's samples from the process group "
        "(ranks' batches one after the other); give mesh=, dp_group= or run.sample_ids to say so yourself",
        stacklevel=2,
    )
    return ranks


def _parts(root: Module) -> tuple[list[Any], set[Any]]:
    """Return the parameters that tensor parallelism shards, and the meshes of FSDP, whose parameters are made whole."""
    fully_sharded: set[Any] = set()
    if "torch.distributed.tensor" not in sys.modules:
        return [], fully_sharded
    for module in root.modules():
        mesh = fsdp_mesh(module)
        if mesh is not None:
            fully_sharded.add(mesh)
    spread: list[Any] = [parameter for parameter in root.parameters() if is_spread(parameter)]
    sharded = [parameter for parameter in spread if any(placement.is_shard() for placement in parameter.placements)]
    return [parameter for parameter in sharded if parameter.device_mesh not in fully_sharded], fully_sharded


def holds_parts(root: Module) -> bool:
    """Return whether a model's layers are sharded over processes."""
    return bool(_parts(root)[0])


def check_whole(input: Tensor, path: str) -> None:
    """Refuse a plain tensor that is a part of another; torch's parallel layers pass such parts on by default.

    Args:
        input: a tensor between the layers of a tensor-parallel model.
        path: path of the site.

    Raises:
        ValueError: if the tensor is a part of another, or has no history that shows it.
    """
    fix = (
        f"say which part the tensor is: reproducible(..., windows={{{path!r}: puredrop.Window(shape, offset)}}) (None "
        "for a whole tensor), or let the layer before it return a DTensor (use_local_output=False)"
    )
    if input.grad_fn is None:
        raise ValueError(f"site {path!r} drops from a plain tensor without a history in a tensor-parallel model; {fix}")
    pending, visited = [input.grad_fn], set()
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        spec = getattr(node, "dtensor_spec", None)
        if spec is None:
            pending += [earlier for earlier, _ in node.next_functions if earlier is not None]
        elif any(not placement.is_replicate() for placement in spec.placements):
            raise ValueError(
                f"site {path!r} drops from a plain tensor of shape {tuple(input.shape)} that is a part of one spread "
                f"over {spec.mesh.size()} processes ({', '.join(map(str, spec.placements))}); {fix}"
            )
