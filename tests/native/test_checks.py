"""The compiled library built with PUREDROP_CHECKS, under AddressSanitizer, called with wrong arguments."""

import struct
import subprocess

import pytest
import torch
from driving import LIST, PANELS, RUN, Cases, build, need, packed

from puredrop.compact import _reference
from puredrop.compact.kept import Kept
from puredrop.ops import _kernel

ROWS, COLUMNS, GROUPS, WIDTH = 21, 34, 3, 32
PANEL_FIELDS = (
    *("scatters", "dense", "rows", "width", "inner", "scale", "groups", "values", "height", "breadth"),
    *("row_at", "row_count", "row_step", "column", "column_count"),
)
RUN_FIELDS = (
    *("op", "dtype", "key", "p", "out", "x", "second", "third", "start", "rank"),
    *("size", "logical_stride", "out_stride", "x_stride", "second_stride", "third_stride", "ids"),
)
FIELDS = {RUN: RUN_FIELDS, PANELS: PANEL_FIELDS, LIST: ("keep", "groups", "size", "index", "at", "counts")}
FORMATS = {PANELS: "qQqqqdqQqqQQqQQ", LIST: "QqqQQQ", RUN: _kernel._HEAD + _kernel._DIM}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    need("cc")
    # Without optimisation, which would take half a minute; the compiler then says that it does not unroll.
    flags = ["-O0", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build(tmp_path_factory.mktemp("checks"), *flags, "-DPUREDROP_CHECKS")


def content(values):
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def call(function, numbers, memory):
    """A call from its struct's numbers and what its pointers point to; None is NULL, a number the size of an output."""
    names = FIELDS[function]
    text = struct.pack(FORMATS[function], *(numbers.get(name, 0) for name in names))
    blocks = [
        (8 * names.index(name), values if isinstance(values, int) else content(values), 0)
        for name, values in memory.items()
        if values is not None
    ]
    return function, text, blocks


def a_run():
    numbers = {"op": _kernel.ADD, "key": 1, "p": 0.5, "rank": 1, "size": 40, "logical_stride": 1}
    numbers |= {f"{name}_stride": 1 for name in ("out", "x", "second", "third")}
    x = torch.randn(40, generator=torch.Generator().manual_seed(2))
    return numbers, {"out": 160, "x": x, "second": torch.ones(40), "third": None, "ids": torch.arange(40)}


def a_gather(scatters=0):
    torch.manual_seed(3)
    rows, columns = (Kept.from_mask(torch.rand(GROUPS, size) < 0.5) for size in (ROWS, COLUMNS))
    numbers = {"scatters": scatters, "rows": ROWS, "width": 2 * COLUMNS, "inner": 2, "scale": 2.0, "groups": GROUPS}
    numbers |= {"height": WIDTH, "breadth": WIDTH}
    memory = {"dense": torch.randn(ROWS, COLUMNS, 2), "values": torch.randn(GROUPS, WIDTH, WIDTH, 2)}
    memory["dense" if scatters else "values"] = 4 * memory["dense" if scatters else "values"].numel()
    memory |= {"row_at": rows.position, "row_count": rows.counts}
    return numbers, memory | {"column": columns.index, "column_count": columns.counts}, rows, columns


def some_masks():
    numbers = {"groups": GROUPS, "size": COLUMNS}
    size = 4 * GROUPS * COLUMNS
    keep = (torch.rand(GROUPS, COLUMNS, generator=torch.Generator().manual_seed(4)) < 0.5).float()
    return numbers, {"keep": keep, "index": size, "at": size, "counts": 4 * GROUPS}


def test_right_calls_of_compacted_layers(program):
    cases = Cases()
    for scatters in (0, 1):
        numbers, memory, rows, columns = a_gather(scatters)
        if scatters:
            expected = torch.empty(ROWS, COLUMNS, 2)
            _reference.scatter(memory["values"], rows, columns, 2.0, 0, expected)
        else:
            expected = torch.empty(GROUPS, WIDTH, WIDTH, 2)
            _reference.gather(memory["dense"], rows, columns, 2.0, 0, expected)
        cases.add_compact(*call(PANELS, numbers, memory), expected)
    numbers, memory = some_masks()
    kept = Kept.from_mask(torch.ones(GROUPS, COLUMNS))
    cases.add_compact(*call(LIST, numbers, memory | {"keep": torch.ones(GROUPS, COLUMNS)}), *kept_outputs(kept))
    cases.check(program, "scalar")


def kept_outputs(kept):
    return kept.index, kept.position, kept.counts


def stops(program, arguments):
    done = subprocess.run([str(program), "scalar"], input=packed(*arguments), capture_output=True)
    assert done.returncode != 0
    return done.stderr.decode().strip()


MOST = 2**63 - 1
WRONG_NUMBERS = [
    *((RUN, "op", value, "op is none of enum puredrop_op") for value in (-1, 7, MOST)),
    *((RUN, "dtype", value, "dtype is none of enum puredrop_dtype") for value in (-1, 4)),
    *((RUN, "p", value, "p is not within 0 and 1") for value in (-0.1, 1.1, float("nan"))),
    *((RUN, "rank", value, "rank is not within 0 and MAX_RANK") for value in (-1, 65, MOST)),
    *((RUN, "size", value, "dim: a size is below 1") for value in (0, -1)),
    (RUN, "size", MOST, "dim: the sizes' product overflows"),
    (RUN, "out_stride", 0, "dim: out has a stride of 0, so that elements overwrite each other"),
    (RUN, "x_stride", MOST // 30, "dim: a stride reaches beyond the address space"),
    (RUN, "second_stride", -MOST - 1, "dim: a stride reaches beyond the address space"),
    (RUN, "op", _kernel.DROPOUT, "operand: second is given; the op reads none"),
    (RUN, "op", _kernel.BIAS_ADD, "operand: third is NULL; the op reads it"),
    (PANELS, "scatters", 2, "scatters is neither 0 nor 1"),
    *(
        (PANELS, name, -1, "rows, width, groups, height or breadth is negative")
        for name in ("rows", "width", "groups", "height", "breadth")
    ),
    *((PANELS, "inner", value, "inner does not divide width") for value in (0, -1, 3)),
    *((PANELS, name, MOST, "rows, groups or width is too large") for name in ("rows", "groups")),
    *((PANELS, name, MOST, "groups, height, breadth or inner is too large") for name in ("height", "breadth")),
    (PANELS, "height", 4, "row_count is not within 0 and height"),
    (PANELS, "breadth", 4, "column_count is not within 0 and breadth, or exceeds the number of columns"),
    (PANELS, "inner", 4, "column_count is not within 0 and breadth, or exceeds the number of columns"),
    *((LIST, name, -1, "groups or size is negative or too large") for name in ("groups", "size")),
    (LIST, "size", 2**31, "groups or size is negative or too large"),
]
WRONG_MEMORY = [
    *((RUN, name, "operand: out or x is NULL") for name in ("out", "x")),
    (RUN, "second", "operand: second is NULL; the op reads it"),
    *((PANELS, name, "dense or values is NULL") for name in ("dense", "values")),
    *(
        (PANELS, name, "row_count or column_count: lists and counts come together")
        for name in ("row_at", "row_count", "column", "column_count")
    ),
    *((LIST, name, "keep, index or at is NULL") for name in ("keep", "index", "at")),
    (LIST, "counts", "counts is NULL"),
]
FUNCTIONS = {RUN: ("puredrop_run", a_run), PANELS: ("puredrop_panels", a_gather), LIST: ("puredrop_list", some_masks)}


def test_wrong_numbers_stop_the_program(program):
    for function, name, value, message in WRONG_NUMBERS:
        entry, right = FUNCTIONS[function]
        numbers, memory = right()[:2]
        assert stops(program, call(function, numbers | {name: value}, memory)) == f"{entry}: {message}", (name, value)


def test_missing_memory_stops_the_program(program):
    for function, name, message in WRONG_MEMORY:
        entry, right = FUNCTIONS[function]
        numbers, memory = right()[:2]
        assert stops(program, call(function, numbers, memory | {name: None})) == f"{entry}: {message}", name


def test_lists_that_lead_beyond_stop_the_program(program):
    for name, low, high, message in (
        ("row_at", -2, WIDTH, "row_at is not within -1 and height - 1"),
        ("row_count", -1, WIDTH + 1, "row_count is not within 0 and height"),
        ("column", -1, COLUMNS, "column is not below the number of columns"),
        ("column_count", -1, WIDTH + 1, "column_count is not within 0 and breadth, or exceeds the number of columns"),
    ):
        for value in (low, high, -(2**31), 2**31 - 1):
            numbers, memory, *_ = a_gather(value % 2)
            values = memory[name].clone()
            values.flatten()[0] = value
            found = stops(program, call(PANELS, numbers, memory | {name: values}))
            assert found == f"puredrop_panels: {message}", (name, value)


def test_rows_by_number_stay_in_the_matrix(program):
    for step, height in ((-1, 5), (9, 5), (0, ROWS + 1), (MOST, 5)):
        numbers, memory, *_ = a_gather()
        numbers |= {"row_step": step, "height": height}
        found = stops(program, call(PANELS, numbers, memory | {"row_at": None, "row_count": None}))
        assert found == "puredrop_panels: row_step: a group's rows lie beyond the matrix", (step, height)


@pytest.mark.parametrize(
    "short", ["x", "second", "out", "ids", "dense", "values", "row_at", "column_count", "keep", "counts"]
)
def test_the_sanitizer_sees_memory_that_is_too_short(program, short):
    """What no check can know: how long the memory is that an address leads to."""
    for function, (_, right) in FUNCTIONS.items():
        numbers, memory = right()[:2]
        if short in memory:
            values = memory[short]
            memory[short] = values - 4 if isinstance(values, int) else values.flatten()[:-1]
            assert "AddressSanitizer: heap-buffer-overflow" in stops(program, call(function, numbers, memory))
