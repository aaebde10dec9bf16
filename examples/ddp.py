"""Data parallel training whose masks are those of one process.

Needs nothing beyond puredrop. Run it on one process, then on several, and compare what it prints:

    python examples/ddp.py
    torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import puredrop

torch.set_num_threads(1)
size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
dist.init_process_group("gloo") if size > 1 else None

torch.manual_seed(0)
x = torch.randn(256, 32)
y = x[:, :4].sum(1, keepdim=True)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

# Rows are dealt in turn, as DistributedSampler deals them: so each sample meets the mask it meets on one process.
group = dist.group.WORLD if size > 1 else None
run = puredrop.reproducible(model, seed=0, dp_group=group, sharding="rows").attach(optimizer)
parallel = DistributedDataParallel(model) if size > 1 else model

rows = TensorDataset(x, y)
sampler = DistributedSampler(rows, size, rank, shuffle=False)
for epoch in range(5):
    total = torch.zeros(())
    for inputs, targets in DataLoader(rows, 32 // size, sampler=sampler):
        optimizer.zero_grad()
        loss = (parallel(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        total += loss.detach() / 8
    if size > 1:
        dist.all_reduce(total)
    if rank == 0:
        print(f"epoch {epoch}: loss {total / size:.5f} at step {run.step}")
if size > 1:
    dist.barrier()
    # Gloo's threads abort a process now and then that takes itself down in order.
    sys.stdout.flush()
    os._exit(0)
