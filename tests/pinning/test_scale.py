"""Ten thousand ranks, a million steps, ten million million elements per step: a simulated mesh against the contract.

The process group is torch's fake one: it has the ranks' numbers, and its collectives do nothing.
"""

import contextlib

import pytest
import torch
import torch.distributed as dist
from nets import masks
from torch import nn

import puredrop
from oracles import keeps
from puredrop import Key

RANKS = 10_000


@contextlib.contextmanager
def rank(number):
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=number, world_size=RANKS)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check(mask, key, index_of):
    """Some elements of a mask, one by one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        i, j = (int(torch.randint(size, (), generator=generator)) for size in mask.shape)
        assert mask[i, j].item() == keeps(key, index_of(i, j), 0.5)


@pytest.mark.parametrize("number", [0, 1, 5_003, RANKS - 1])
def test_ten_million_million_elements(number):
    rows, width, part, step = 8, 125_000_000, 1_000, 10**6
    column = width - part
    model = nn.Sequential(puredrop.nn.Dropout(0.5))
    window = puredrop.Window((rows, width), (0, column))
    with rank(number):
        run = puredrop.reproducible(model, seed=3, dp_group=dist.group.WORLD, windows={"0": window})
        run.step = step
        first, second = masks(model, torch.ones(rows, part)), masks(model, torch.ones(rows, part))
        run.advance()
    key = int(Key(3).fold_in("").fold_in("0").fold_in(step).fold_in(0))
    assert RANKS * rows * width == 10**13
    check(first[0], key, lambda i, j: (number * rows + i) * width + column + j)
    check(second[0], key, lambda i, j: ((RANKS + number) * rows + i) * width + column + j)


@pytest.mark.parametrize("number", [0, 4_321, RANKS - 1])
def test_a_mesh_of_a_hundred_times_a_hundred(number):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    with rank(number):
        mesh = init_device_mesh("cpu", (100, 100), mesh_dim_names=("dp", "tp"))
        whole = DTensor.from_local(torch.ones(8, 1250), mesh, [Shard(0), Shard(1)], run_check=False)
        mask = puredrop.functional.dropout(whole, 0.5, key=Key(5)).to_local() != 0
    above, before = number // 100 * 8, number % 100 * 1250
    check(mask, 5, lambda i, j: (above + i) * 125_000 + before + j)


@pytest.mark.parametrize(("dims", "index"), [(("dp",), 43), (("dp", "fsdp"), 4_321), (("tp",), 1)])
def test_a_mesh_names_the_ranks_that_share_samples(dims, index):
    from torch.distributed.device_mesh import init_device_mesh

    model = nn.Sequential(puredrop.nn.Dropout(0.5))
    with rank(8_643):
        mesh = init_device_mesh("cpu", (50, 100, 2), mesh_dim_names=("dp", "fsdp", "tp"))
        assert tuple(mesh.get_coordinate()) == (43, 21, 1)
        puredrop.reproducible(model, seed=3, mesh=mesh[dims])
        (mask,) = masks(model, torch.ones(4, 100))
    key = int(Key(3).fold_in("").fold_in("0").fold_in(0).fold_in(0))
    check(mask, key, lambda i, j: (4 * index + i) * 100 + j)
