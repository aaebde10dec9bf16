"""Build the driver of the compiled library, and pack calls for it."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from oracles import bits
from puredrop import Key
from puredrop.ops import Place, _kernel, _reference

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
RUN, PANELS, LIST = range(3)
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def need(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI installs {', '.join(missing)}; see .ci/run")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)")


def build(folder, *flags, compiler="cc", sources=ROOT / "csrc"):
    program = folder / "driver"
    files = [*sorted(map(str, sources.glob("*.c"))), str(HERE / "driver.c")]
    done = subprocess.run(
        [compiler, *WARNINGS, f"-I{ROOT / 'csrc'}", *flags, *files, "-lm", "-lpthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return program


def packed(function, call, blocks):
    """A call for the driver: blocks are (place of the pointer in the call, bytes or the size of an output, shift)."""
    text = struct.pack("<3q", function, len(call), len(blocks)) + call
    for at, content, shift in blocks:
        is_output = isinstance(content, int)
        text += struct.pack("<4q", at, content if is_output else len(content), shift, is_output)
        text += b"" if is_output else content
    return text


class Cases:
    """Calls for the driver, and what must come out."""

    def __init__(self):
        self.text, self.expected, self.random = [], [], np.random.default_rng(7)

    def add(self, op, dtype, shape, strides, key, p, logical=None, start=0, ids=None, dim=0, misalign=0):
        """A call on operands that all have these strides; `logical` strides the index, row-major if not given."""
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        flat = [torch.from_numpy(self.random.standard_normal(size)).to(dtype) for _ in range(3)]
        x, second, third = (torch.as_strided(one, shape, strides) for one in flat)
        used = [True, op not in (0, 1, 3), op == _kernel.BIAS_ADD]
        logical = logical or list(torch.empty(shape, device="meta").stride())
        contents = [size * dtype.itemsize, *(one.view(torch.uint8).numpy().tobytes() for one in flat)]
        blocks = [(32 + 8 * o, contents[o], misalign) for o in range(4) if o == 0 or used[o - 1]]
        dims = [(n, logical[d] % 2**64, *[strides[d]] * 4, 0) for d, n in enumerate(shape)]
        call = struct.pack(_kernel._HEAD, op, _kernel._DTYPES[dtype], key, p, 0, 0, 0, 0, start, len(shape))
        if ids is not None:
            blocks.append((len(call) + (dim + 1) * _kernel._DIM_SIZE - 8, ids.numpy().tobytes(), 0))
        call += b"".join(struct.pack(_kernel._DIM, *one) for one in dims)
        self.text.append(packed(RUN, call, blocks))

        index = torch.full((), start % 2**63, dtype=torch.int64)
        for d, n in enumerate(shape):
            along = ids if ids is not None and d == dim else torch.arange(n)
            index = index + (along * logical[d]).view(-1, *[1] * (len(shape) - 1 - d))
        output = torch.full((size * dtype.itemsize,), 0xAA, dtype=torch.uint8).view(dtype)
        torch.as_strided(output, shape, strides).copy_(values(op, x, second, third, key, p, index.expand(shape)))
        self.expected.append((op, output))

    def add_compact(self, function, call, blocks, *outputs):
        """A call of `puredrop_panels` or `puredrop_list` whose outputs are given."""
        self.text.append(packed(function, call, blocks))
        self.expected += [(function, output) for output in outputs]

    def check(self, program, variant, *before, threads=1):
        """Run the calls and compare; `before` is what runs the program."""
        done = subprocess.run(
            [*before, str(program), variant, str(threads)], input=b"".join(self.text), capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        left = done.stdout
        for number, (op, expected) in enumerate(self.expected):
            size = expected.numel() * expected.itemsize
            found = torch.frombuffer(bytearray(left[:size]), dtype=expected.dtype)
            if op in (_kernel.GELU, _kernel.GELU_BACKWARD) and found.dtype == torch.float64:
                torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)  # another C library's erfc
            else:
                assert torch.equal(bits(found + 0.0), bits(expected.flatten() + 0.0)), (number, variant)
            left = left[size:]
        assert not left


def values(op, x, second, third, key, p, index):
    """The reference, or for the fused forms the library on this machine, which tests/test_fused.py judges."""
    ids = Place((), (2**62,), None, index.flatten())
    rate = torch.tensor(p, dtype=torch.float64)

    def dropped(t):
        return _reference.dropout(t.flatten(), Key(key).tensor(), rate, ids).view(t.shape)

    if op == _kernel.DROPOUT:
        return dropped(x)
    if op == _kernel.RELU:
        return dropped(x.relu())
    if op == _kernel.RELU_BACKWARD:
        scale = 1 / (1 - round(p * 2**64) / 2**64)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scaled = (x.to(wide) * torch.tensor(scale, dtype=torch.float64).to(wide)).to(x.dtype)
        return torch.where(second <= 0, torch.zeros_like(x), scaled)
    if op == _kernel.ADD:
        return dropped(x) + second
    if op == _kernel.BIAS_ADD:
        return dropped(x + third) + second
    second = second.contiguous().flatten() if op == _kernel.GELU_BACKWARD else None
    return _kernel.run(op, x.contiguous().flatten(), key, p, ids, second=second).view(x.shape)
