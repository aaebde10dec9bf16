"""DTensors: each process draws its part of the one mask, whatever the layout; processes are simulated."""

import contextlib

import pytest
import torch
import torch.distributed as dist

import puredrop
from puredrop import Key

torch.distributed.is_available() or pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard  # noqa: E402
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

WHOLE = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def meshes(shape):
    """The mesh as each rank has it."""

    def as_rank(rank):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=torch.Size(shape).numel())
        return init_device_mesh("cpu", shape)

    try:
        yield as_rank
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def spread(mesh, placements, grad=False):
    """A part of `WHOLE` as a DTensor, and which part."""
    sizes, start = compute_local_shape_and_global_offset(WHOLE.shape, mesh, placements)
    part = tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))
    local = WHOLE[part].clone().requires_grad_(grad)
    tensor = DTensor.from_local(local, mesh, placements, run_check=False, shape=WHOLE.shape, stride=WHOLE.stride())
    return tensor, local, part


LAYOUTS = [
    ((3,), [Shard(0)]),
    ((3,), [Shard(1)]),
    ((4,), [Shard(2)]),
    ((2,), [Replicate()]),
    ((2, 2), [Shard(0), Shard(2)]),
    ((2, 2), [Shard(1), Replicate()]),
    ((2, 3), [Shard(1), Shard(1)]),
]


@pytest.mark.parametrize(("shape", "placements"), LAYOUTS, ids=str)
def test_every_rank_has_its_part(shape, placements):
    expected = puredrop.functional.dropout(WHOLE, 0.4, key=Key(7))
    noisy = puredrop.functional.gaussian_dropout(WHOLE, 0.4, key=Key(7))
    covered = torch.zeros_like(WHOLE, dtype=torch.bool)
    for rank in range(torch.Size(shape).numel()):
        with meshes(shape) as as_rank:
            tensor, local, part = spread(as_rank(rank), placements, grad=True)
            output = puredrop.functional.dropout(tensor, 0.4, key=Key(7))
            assert output.placements == tuple(placements)
            assert output.shape == WHOLE.shape
            assert torch.equal(output.to_local(), expected[part])
            assert torch.equal(puredrop.functional.gaussian_dropout(tensor, 0.4, key=Key(7)).to_local(), noisy[part])
            gradient = torch.randn(local.shape)
            output.to_local().backward(gradient)
            again = puredrop.functional.dropout(torch.ones_like(WHOLE), 0.4, key=Key(7))[part]
            torch.testing.assert_close(local.grad, gradient * again)
            covered[part] = True
    assert covered.all()


def test_shared_dimensions_windows_and_names():
    ids = torch.tensor([3, 1, 4, 0, 2])
    by_name = puredrop.functional.dropout(WHOLE, 0.4, key=Key(7), sample_ids=ids)
    channels = puredrop.functional.dropout1d(WHOLE, 0.4, key=Key(7))
    window = puredrop.Window((9, 6, 10), (2, 0, 3))
    seen = puredrop.functional.dropout(WHOLE, 0.4, key=Key(7), window=window)
    for rank in range(4):
        with meshes((2, 2)) as as_rank:
            tensor, _, part = spread(as_rank(rank), [Shard(0), Shard(2)])
            found = puredrop.functional.dropout(tensor, 0.4, key=Key(7), sample_ids=ids)
            assert torch.equal(found.to_local(), by_name[part])
            assert torch.equal(puredrop.functional.dropout1d(tensor, 0.4, key=Key(7)).to_local(), channels[part])
            found = puredrop.functional.dropout(tensor, 0.4, key=Key(7), window=window)
            assert torch.equal(found.to_local(), seen[part])


def test_fused_forms_and_in_place():
    relu = puredrop.functional.relu_dropout(WHOLE, 0.4, key=Key(7))
    # A mesh that no other test has, and one rank of it: torch keeps layouts by mesh, with the rank that asked first.
    with meshes((5,)) as as_rank:
        tensor, local, part = spread(as_rank(2), [Shard(1)])
        assert torch.equal(puredrop.functional.relu_dropout(tensor, 0.4, key=Key(7)).to_local(), relu[part])
        puredrop.functional.dropout(tensor, 0.4, inplace=True, key=Key(7))
        assert torch.equal(local, puredrop.functional.dropout(WHOLE, 0.4, key=Key(7))[part])


def test_a_sum_is_taken_first_and_strided_shards_are_refused():
    with meshes((2,)) as as_rank:
        tensor = DTensor.from_local(WHOLE.clone(), as_rank(0), [Partial()], run_check=False)
        assert puredrop.functional.dropout(tensor, 0.4, key=Key(7)).placements == (Replicate(),)
    from torch.distributed.tensor.placement_types import _StridedShard

    with meshes((2,)) as as_rank:
        tensor, _, _ = spread(as_rank(0), [Shard(0)])
        tensor._spec.placements = (_StridedShard(0, split_factor=2),)
        with pytest.raises(NotImplementedError, match=r"input is a DTensor placed .*; expected Replicate or Shard"):
            puredrop.functional.dropout(tensor, 0.4, key=Key(7))
