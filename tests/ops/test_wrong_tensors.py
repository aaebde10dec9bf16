"""Every function that hands an address to the compiled library, called with tensors that do not fit."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oracles import FLOATS, same_bits
from puredrop import Key
from puredrop.compact import _reference as compact_reference
from puredrop.compact.kept import Kept
from puredrop.compact.panels import gather, scatter, shape_of
from puredrop.ops import Place, _kernel, _reference

SOURCES = Path(__file__).parents[2] / "src" / "puredrop"
GUARD = 96
MARK = {torch.int32: 1_234_567, torch.int64: 1_234_567}


def guarded(tensor):
    """The same values in the middle of a larger block of memory, whose ends are marked; a function that checks them."""
    mark = MARK.get(tensor.dtype, 7.25)
    block = torch.full((tensor.numel() + 2 * GUARD,), mark, dtype=tensor.dtype)
    inside = block[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside, lambda: bool((block[:GUARD] == mark).all() and (block[GUARD + tensor.numel() :] == mark).all())


def without_memory(tensor):
    """A tensor whose storage is gone, as FSDP frees parameters."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def test_addresses_are_handed_over_in_the_files_that_check():
    files = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if ".data_ptr()" in path.read_text()}
    compares = {"inspection/duplicate.py"}  # asks whether two tensors share memory; the library never sees it
    assert files == {"ops/_kernel.py", "compact/kept.py", "compact/panels.py", *compares}


SQUARE = (17, 17)
IDS = torch.arange(17)
NAMED = {"op": _kernel.DROPOUT, "second": None, "third": None}
# What is wrong, and how a right call is changed: run(op, input, key, p, place, second, third).
WRONG = {
    "op is 7": {"op": 7},
    "op is -1": {"op": -1},
    "input has dtype torch.int64": {**NAMED, "input": torch.ones(SQUARE, dtype=torch.int64)},
    "input has dtype torch.complex64": {**NAMED, "input": torch.ones(SQUARE, dtype=torch.complex64)},
    "input is on device meta": {"input": torch.empty(SQUARE, device="meta")},
    "input has no memory": {"input": without_memory(torch.ones(SQUARE))},
    "key is -1": {"key": -1},
    "key is 1.5": {"key": 1.5},
    "key is 18446744073709551616": {"key": 2**64},
    "p is -0.1": {"p": -0.1},
    "p is 1.1": {"p": 1.1},
    "p is nan": {"p": math.nan},
    "second is None": {"second": None},
    "second is 3": {"second": 3},
    "second is a tensor of dtype torch.float64": {"second": torch.ones(SQUARE, dtype=torch.float64)},
    r"second has shape \(17, 16\)": {"second": torch.ones(17, 16)},
    r"second has shape \(1, 17, 17\)": {"second": torch.ones(1, 17, 17)},
    "second is on device meta": {"second": torch.empty(SQUARE, device="meta")},
    "second has no memory": {"second": without_memory(torch.ones(SQUARE))},
    "third is None": {"third": None},
    r"third has shape \(17,\)": {"third": torch.ones(17)},
    "third is a tensor; expected None with operation 5": {"op": _kernel.ADD},
    "second is a tensor; expected None with operation 0": {"op": _kernel.DROPOUT, "third": None},
    "third is a tensor; expected None with operation 0": {"op": _kernel.DROPOUT, "second": None},
    r"shared_dims is \(2,\)": {**NAMED, "place": Place((2,))},
    r"shared_dims is \(-1,\)": {**NAMED, "place": Place((-1,))},
    r"window_shape is \(17,\)": {**NAMED, "place": Place((), (17,), (0, 0))},
    r"window_offset is \(0,\)": {**NAMED, "place": Place((), SQUARE, (0,))},
    r"sample_ids has shape \(16,\)": {**NAMED, "place": Place((), SQUARE, None, IDS[:16])},
    r"sample_ids has shape \(17, 1\)": {**NAMED, "place": Place((), SQUARE, None, IDS[:, None])},
    "sample_ids has dtype torch.int32": {**NAMED, "place": Place((), SQUARE, None, IDS.int())},
    "sample_ids has no memory": {**NAMED, "place": Place((), SQUARE, None, IDS.to("meta"))},
    "sample_dim is 2": {**NAMED, "place": Place((), SQUARE, None, IDS, 2)},
    "sample_dim is -1": {**NAMED, "place": Place((), SQUARE, None, IDS, -1)},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_call_is_refused_before_anything_is_written(message):
    x, is_intact = guarded(torch.randn(SQUARE))
    before = x.clone()
    right = {"op": _kernel.BIAS_ADD, "input": x, "key": 3, "p": 0.5, "place": Place(), "inplace": True}
    right |= {"second": torch.randn(SQUARE), "third": torch.randn(SQUARE)}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        _kernel.run(**right | WRONG[message])
    assert "expected" in str(error.value)
    assert is_intact()
    assert same_bits(x, before)
    _kernel.run(**right)
    assert is_intact()
    assert not torch.equal(x, before)


def test_the_operator_called_by_hand_is_checked_too():
    x, key, p = torch.randn(6, 4), Key(1).tensor(), torch.tensor(0.5)
    for sizes, ids, dim in (([6, 4], IDS[:5], 0), ([6, 4], IDS[:6], 1), ([6, 4], IDS[:6], 9), ([6], None, 0)):
        with pytest.raises((TypeError, ValueError, IndexError)):
            torch.ops.puredrop.dropout(x, key, p, [], sizes, None, ids, dim)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_right_calls_stay_within_their_memory(dtype, variant):
    for number in range(60):
        shape = torch.randint(1, 40, (3,)).tolist()
        x, is_intact = guarded(torch.randn(shape).to(dtype))
        x = x.permute(torch.randperm(3).tolist())[:, number % 2 :]
        expected = _reference.dropout(x, Key(number).tensor(), torch.tensor(0.3, dtype=torch.float64), Place())
        _kernel.run(_kernel.DROPOUT, x, number, 0.3, Place(), inplace=True)
        assert is_intact()
        assert same_bits(x, expected)


def test_more_than_64_dimensions():
    x = torch.randn([1] * 40 + [5] + [1] * 40 + [7]).transpose(40, 81)
    output = _kernel.run(_kernel.DROPOUT, x, 5, 0.3, Place((), tuple(x.shape), None, IDS[:1], 3))
    assert output.shape == x.shape
    plain = _kernel.run(_kernel.DROPOUT, x.squeeze(), 5, 0.3, Place())
    assert same_bits(output.squeeze(), plain)


ROWS, COLUMNS, GROUPS = 21, 34, 3


def lists():
    return Kept.from_mask(torch.rand(GROUPS, ROWS) < 0.5), Kept.from_mask(torch.rand(GROUPS, COLUMNS) < 0.5)


def changed(kept, field, index, value):
    values = getattr(kept, field).clone()
    values[index] = value
    return replace(kept, **{field: values})


def longer(values):
    return torch.cat([values, values[:1]])


WRONG_PANELS = {
    "dense has shape": lambda c: c | {"dense": torch.ones(ROWS)},
    "dense has strides": lambda c: c | {"dense": torch.ones(COLUMNS, ROWS).t()},
    "panels is on device": lambda c: c | {"dense": c["dense"].to("meta")},
    "dense or panels has no memory": lambda c: c | {"dense": without_memory(c["dense"])},
    "panels has dtype torch.float32": lambda c: c | {"dense": c["dense"].double()},
    "panels has dtype torch.float64": lambda c: c | {"panels": c["panels"].double()},
    "panels has strides": lambda c: c | {"panels": c["panels"].mT.contiguous().mT},
    r"panels has shape \(3, 31": lambda c: c | {"panels": c["panels"][:, :-1].contiguous()},
    r"panels has shape \(3, 32, 31": lambda c: c | {"panels": c["panels"][..., :-1].contiguous()},
    r"panels has shape \(\)": lambda c: c | {"panels": torch.ones(())},
    "rows is of 21 units": lambda c: c | {"dense": torch.ones(ROWS - 1, COLUMNS)},
    "columns is of 34 units": lambda c: c | {"dense": torch.ones(ROWS, COLUMNS + 1)},
    "rows.counts has shape": lambda c: c | {"panels": longer(c["panels"])},
    "rows.counts has dtype": lambda c: c | {"rows": replace(c["rows"], counts=c["rows"].counts.long())},
    "rows.position has shape": lambda c: c | {"rows": replace(c["rows"], position=c["rows"].position[:, 1:])},
    "rows.position has dtype": lambda c: c | {"rows": replace(c["rows"], position=c["rows"].position.float())},
    "columns.index has shape": lambda c: c | {"columns": replace(c["columns"], index=c["columns"].index.mT)},
    "columns.index is on device": lambda c: c | {"columns": replace(c["columns"], index=c["columns"].index.to("meta"))},
    "columns has no memory": lambda c: c | {"columns": replace(c["columns"], counts=without_memory(c["columns"].counts))},
    "rows is 22, step 0": lambda c: c | {"rows": ROWS + 1, "panels": torch.ones(GROUPS, ROWS + 1, 32)},
    "rows is 21, step 1": lambda c: c | {"rows": ROWS, "step": 1, "panels": torch.ones(GROUPS, ROWS, 32)},
    "rows is 7, step -1": lambda c: c | {"rows": 7, "step": -1, "panels": torch.ones(GROUPS, 7, 32)},
}  # fmt: skip
WRONG_NUMBERS = [
    *(("rows", "position", (1, 2), value) for value in (-2, 32, 2**31 - 1, -(2**31))),
    *(("rows", "counts", 2, value) for value in (-1, 33, 2**31 - 1, -(2**31))),
    *(("columns", "index", (0, 0), value) for value in (-1, COLUMNS, 2**31 - 1, -(2**31))),
    *(("columns", "counts", 1, value) for value in (-1, 33, COLUMNS + 1, 2**31 - 1, -(2**31))),
]


def right_panels():
    """A right call, whose matrix and panels lie between marked memory."""
    rows, columns = lists()
    rows, columns = replace(rows, width=32), replace(columns, width=32)
    dense, dense_intact = guarded(torch.randn(ROWS, COLUMNS))
    panels, panels_intact = guarded(torch.randn(shape_of(dense, GROUPS, rows, columns)))
    call = {"dense": dense, "rows": rows, "columns": columns, "scale": 2.0, "panels": panels, "step": 0}
    return call, lambda: dense_intact() and panels_intact()


def refused(call, is_intact, wrong, message):
    before = call["dense"].clone(), call["panels"].clone()
    for function in (gather, scatter):
        with pytest.raises((TypeError, ValueError), match=f"^({message}).*expected"):
            function(**wrong)
    assert is_intact()
    assert same_bits(call["dense"], before[0])
    assert same_bits(call["panels"], before[1])


@pytest.mark.parametrize("message", WRONG_PANELS)
def test_panels_that_do_not_fit_are_refused(message):
    call, is_intact = right_panels()
    refused(call, is_intact, WRONG_PANELS[message](call), message)


@pytest.mark.parametrize(("name", "field", "index", "value"), WRONG_NUMBERS)
def test_lists_that_lead_beyond_a_tensor_are_refused(name, field, index, value):
    call, is_intact = right_panels()
    wrong = call | {name: changed(call[name], field, index, value)}
    refused(call, is_intact, wrong, "rows or columns: a list of kept units")


def test_lists_of_another_matrix_are_refused():
    kept = Kept.from_mask(torch.ones(1, 64))
    with pytest.raises(ValueError, match="rows is of 64 units; expected 4, as the matrix has"):
        scatter(torch.ones(1, 64, 64), kept, kept, 1.0, torch.zeros(4, 4))
    with pytest.raises(ValueError, match="rows is of 64 units; expected 4, as the matrix has"):
        gather(torch.zeros(4, 4), kept, kept, 1.0, torch.ones(1, 64, 64))


def test_calls_of_random_sizes_are_right_or_refused():
    sizes, outcomes = [1, 2, 3, 16, 17], []
    for _ in range(600):
        pick = [sizes[i] for i in torch.randint(5, (8,)).tolist()]
        rows, columns = Kept.from_mask(torch.rand(*pick[:2]) < 0.6), Kept.from_mask(torch.rand(pick[0], pick[2]) < 0.6)
        by_number = pick[3] == 1
        dense, dense_intact = guarded(torch.randn(pick[4] if pick[5] == 1 else pick[1], pick[2]))
        shape = shape_of(dense, pick[0], pick[1] if by_number else rows, columns)
        shape = (*shape[:2], pick[7]) if pick[6] == 1 else shape
        panels, panels_intact = guarded(torch.randn(shape))
        call = (pick[1] if by_number else rows, columns, 1.5)
        try:
            gather(dense, *call, panels)
            expected = torch.empty(shape)
            compact_reference.gather(dense, None if by_number else rows, columns, 1.5, 0, expected)
            assert same_bits(panels, expected)
            scatter(panels, *call, dense)
            outcomes.append("right")
        except (TypeError, ValueError):
            outcomes.append("refused")
        assert dense_intact()
        assert panels_intact()
    assert min(outcomes.count("right"), outcomes.count("refused")) > 100


def test_masks_of_another_form():
    for wrong in (torch.ones(3), torch.ones(1, 2, 3), torch.ones(())):
        with pytest.raises(ValueError, match=r"keep has shape .*expected \(groups, size\)"):
            Kept.from_mask(wrong)
    tiny = torch.tensor([[0.0, 1e-300, -1e-60, math.nan]], dtype=torch.float64)
    assert Kept.from_mask(tiny).position.tolist() == [[-1, 0, 1, 2]]
    assert Kept.from_mask(torch.rand(5, 3).t() < 2).counts.tolist() == [5, 5, 5]
    with torch.device("meta"):  # new tensors without a device go there
        kept = Kept.from_mask(tiny)
    assert kept.units(0).tolist() == [1, 2, 3]


def test_an_empty_matrix_leaves_the_panels_that_are_summed():
    panels = torch.randn(2, 16, 3)
    before, rows = panels.clone(), Kept.from_mask(torch.ones(2, 0))
    scatter(panels, rows, None, 1.0, torch.empty(0, 3))
    assert same_bits(panels, before)
    assert not gather(torch.empty(0, 3), rows, None, 1.0, panels).any()
