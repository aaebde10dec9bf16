"""What each process does: `ranks.py FOLDER CASE...` by torchrun writes what rank N saw to FOLDER/CASE-N.pt."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from steps import mlp
from torch.nn.parallel import DistributedDataParallel

import puredrop

GROUPS, ROWS, STEPS = 2, 12, 3


def batch(step, rows):
    return torch.randn(rows, 20, generator=torch.Generator().manual_seed(100 + step))


def train(model, parts_of, rows, run=None, weights_of=None):
    """Final weights, and the output of every forward."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if run is not None:
        run.attach(optimizer)
    outputs = []
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = parts_of(batch(step, rows))
        for part in parts:
            outputs.append(model(part))
            (outputs[-1].square().mean() / len(parts)).backward()
        optimizer.step()
    weights = {name: p.detach() for name, p in (weights_of or model).named_parameters()}
    return {"outputs": [one.detach() for one in outputs], "weights": weights}


def run(case):
    rank, size = dist.get_rank(), dist.get_world_size()
    model = mlp(input_p=0.2)
    wrapped = DistributedDataParallel(model) if case == "own" else model  # before batchwise, or after
    puredrop.batchwise(wrapped, GROUPS, ranks=case)
    run = puredrop.reproducible(wrapped, 3, dp_group=dist.group.WORLD)
    wrapped = wrapped if case == "own" else DistributedDataParallel(model)
    # "same": both processes are given the same rows, so that what differs can only be the masks.
    parts_of = (lambda x: [x.chunk(size)[rank]]) if case == "own" else (lambda x: x.chunk(2))
    return train(wrapped, parts_of, size * ROWS, run, weights_of=model)


def main(folder, *cases):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in cases:
        torch.save(run(case), Path(folder) / f"{case}-{dist.get_rank()}.pt")
        dist.barrier()
    os._exit(0)  # gloo aborts a process now and then that takes itself down in order


if __name__ == "__main__":
    main(*sys.argv[1:])
