"""The compaction core: lists, panels gathered and scattered, by the compiled library and in plain torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import puredrop
from puredrop.compact.buffers import Buffer
from puredrop.compact.kept import Kept
from puredrop.compact.panels import gather, scatter, shape_of


@pytest.fixture(params=["cpu", "reference"])
def backend(request, use):
    use(backend=request.param)
    return request.param


def poison(*shape, dtype=torch.float32):
    return torch.full(shape, torch.nan, dtype=dtype)


def keep(groups, size, p=0.5, seed=0):
    return torch.rand(groups, size, generator=torch.Generator().manual_seed(seed)) >= p


def test_lists(backend):
    mask = keep(3, 37)
    mask[1] = False
    mask[2] = True
    kept = Kept.from_mask(mask)
    assert kept.counts.tolist() == mask.sum(1).tolist()
    assert kept.size == 37
    assert kept.width == 48
    for group in range(3):
        units = np.flatnonzero(mask[group].numpy())
        assert kept.units(group).tolist() == units.tolist()
        at = np.full(37, -1)
        at[units] = np.arange(len(units))
        assert kept.position[group].tolist() == at.tolist()


def test_nothing_kept_has_room_all_the_same(backend):
    assert Kept.from_mask(torch.zeros(2, 5)).width == 16
    assert Kept.from_mask(torch.zeros(1, 0)).counts.tolist() == [0]


def panels_by_hand(dense, rows, columns, height, breadth, scale, step):
    """In numpy: (rows, columns) masks of each group, or None; rows a number otherwise."""
    dense = dense.numpy()
    groups = len(columns) if columns is not None else len(rows)
    out = np.zeros((groups, height, breadth, *dense.shape[2:]), dense.dtype)
    for g in range(groups):
        r = np.flatnonzero(rows[g]) if not isinstance(rows, int) else np.arange(g * step, g * step + rows)
        c = np.flatnonzero(columns[g]) if columns is not None else np.arange(dense.shape[1])
        out[g, : len(r), : len(c)] = dense[np.ix_(r, c)] * np.asarray(scale, dense.dtype)
    return out


CASES = ["rows and columns", "rows", "columns", "samples"]


def call(case, groups, size, inner, dtype, seed=0):
    """Dense matrix, rows, columns and step of a call, the masks behind them, and the panels' shape."""
    torch.manual_seed(seed)
    rows, columns = keep(groups, size[0], seed=seed), keep(groups, size[1], 0.3, seed=seed + 1)
    count = size[0]
    args = {
        "rows and columns": (Kept.from_mask(rows), Kept.from_mask(columns), 0, rows, columns),
        "rows": (Kept.from_mask(rows), None, 0, rows, None),
        "columns": (count, Kept.from_mask(columns), 0, count, columns),
        "samples": (count, Kept.from_mask(columns), count, count, columns),
    }[case]
    height = groups * count if case == "samples" else count
    dense = torch.randn(height, size[1], *inner, dtype=dtype)
    return dense, *args, shape_of(dense, groups, args[0], args[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [(), (3, 2)])
@pytest.mark.parametrize("case", CASES)
def test_gather(backend, case, inner, dtype):
    dense, rows, columns, step, row_masks, column_masks, shape = call(case, 3, (21, 34), inner, dtype)
    panels = gather(dense, rows, columns, 1.7, poison(*shape, dtype=dtype), step)
    expected = panels_by_hand(dense, row_masks, column_masks, *shape[1:3], 1.7, step)
    assert np.array_equal(panels.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [(), (3, 2)])
@pytest.mark.parametrize("case", CASES)
def test_scatter(backend, case, inner, dtype):
    """The adjoint of gather, and written everywhere."""
    dense, rows, columns, step, row_masks, column_masks, shape = call(case, 3, (21, 34), inner, dtype)
    panels = torch.randn(shape, dtype=dtype)
    panels[:, :, column_masks.sum(1).max() if column_masks is not None else shape[2] :] = torch.nan  # never read
    found = scatter(panels, rows, columns, 1.7, poison(*dense.shape, dtype=dtype), step)
    expected = np.zeros(dense.shape, panels.numpy().dtype)
    for g in range(3):
        r = np.flatnonzero(row_masks[g]) if not isinstance(rows, int) else np.arange(g * step, g * step + rows)
        c = np.flatnonzero(column_masks[g]) if column_masks is not None else np.arange(dense.shape[1])
        expected[np.ix_(r, c)] += panels[g, : len(r), : len(c)].numpy() * np.asarray(1.7, expected.dtype)
    assert np.allclose(found.numpy(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@given(
    groups=st.integers(1, 5),
    size=st.tuples(st.integers(1, 40), st.integers(1, 300)),
    seed=st.integers(0, 1000),
    case=st.sampled_from(CASES),
)
def test_the_library_is_the_reference(groups, size, seed, case):
    from puredrop.compact import _reference

    dense, rows, columns, step, *_, shape = call(case, groups, size, (), torch.float32, seed)
    kept = rows if isinstance(rows, Kept) else None
    found, expected = gather(dense, rows, columns, 0.7, poison(*shape), step), poison(*shape)
    _reference.gather(dense, kept, columns, 0.7, step, expected)
    assert torch.equal(found, expected)
    back, expected_back = scatter(found, rows, columns, 1.3, poison(*dense.shape), step), poison(*dense.shape)
    _reference.scatter(found, kept, columns, 1.3, step, expected_back)
    torch.testing.assert_close(back, expected_back, rtol=1e-6, atol=1e-7)


def test_threads_share_rows_and_agree():
    dense, rows, columns, step, *_, shape = call("rows and columns", 4, (700, 900), (), torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            panels = gather(dense, rows, columns, 2.0, poison(*shape), step)
            found.append((panels, scatter(panels, rows, columns, 0.5, poison(*dense.shape), step)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class TestMemory:
    like = torch.empty(0)

    def test_it_is_given_out_again_once_nobody_has_it(self):
        memory = Buffer()
        first = memory.tensor((4, 5), self.like)
        at = first.data_ptr()
        assert memory.tensor((4, 5), self.like).data_ptr() != at
        del first
        assert memory.tensor((2, 3), self.like).data_ptr() == at

    @pytest.mark.parametrize("hold", [lambda t: t[1:], lambda t: t.detach(), lambda t: t.numpy(), lambda t: t.T])
    def test_it_is_not_while_a_view_lives(self, hold):
        memory = Buffer()
        tensor = memory.tensor((4, 5), self.like)
        at, view = tensor.data_ptr(), hold(tensor)
        del tensor
        assert memory.tensor((4, 5), self.like).data_ptr() != at
        del view
        assert memory.tensor((4, 5), self.like).data_ptr() == at

    def test_more_is_asked_for(self):
        memory = Buffer()
        memory.tensor((4,), self.like)
        assert memory.tensor((400,), self.like).shape == (400,)
        assert memory.tensor((3,), torch.empty(0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("sizes", [(99, 6), (3, 6)])
def test_units_that_do_not_fit_the_weight_are_refused(sizes):
    given, expected = sizes
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(expected, 4))
    puredrop.batchwise(model, groups=1)
    with pytest.raises(RuntimeError, match=f"shapes do not fit: a layer whose input has {expected} units"):
        model(torch.randn(8, given))
