"""Tensor parallel layers with dropout between: each process draws its columns of the one mask.

Needs nothing beyond puredrop. Run it on two processes:

    torchrun --standalone --nproc-per-node 2 examples/tensor_parallel.py
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import puredrop

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()


def block() -> nn.Sequential:
    """The same weights on every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 32))


x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
alone = block()
run = puredrop.reproducible(alone, seed=0)
run.sample_ids = torch.arange(8)  # every process has all samples here, and is no part of a whole
expected = alone(x)

mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))

# DTensors between the layers carry their place.
spread = parallelize_module(block(), mesh, {"0": ColwiseParallel(use_local_output=False), "3": RowwiseParallel()})
puredrop.reproducible(spread, seed=0)
close = torch.allclose(spread(x), expected, atol=1e-5)

# Plain tensors, torch's default, do not: without a window the site is refused, never given a wrong mask.
styles = {"0": ColwiseParallel(), "3": RowwiseParallel()}
local = parallelize_module(block(), mesh, styles)
with puredrop.reproducible(local, seed=0):
    try:
        local(x)
    except ValueError as error:
        refused = str(error).split(";")[0]
window = puredrop.Window((8, 64), (0, rank * 64 // size))
puredrop.reproducible(local, seed=0, windows={"2": window})
local_close = torch.allclose(local(x), expected, atol=1e-5)

if rank == 0:
    print("DTensors, the masks of one process:", close)
    print("plain tensors without a window:", refused)
    print("plain tensors with one:", local_close)
dist.barrier()
# Gloo's threads abort a process now and then that takes itself down in order.
sys.stdout.flush()
os._exit(0)
