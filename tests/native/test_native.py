"""The compiled library alone, fed by a driver: under sanitizers, on an emulated Arm, and as AVX-512 in plain C.

Where a compiler or an emulator is missing the test is skipped with the reason; in CI, which installs them, it fails.
"""

import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from oracles import FLOATS, bits
from puredrop import Key
from puredrop.ops import Place, _kernel, _reference

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
pytestmark = pytest.mark.integration  # the core runs the same code, compiled for this machine, in tests/ops
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
ON_X86 = platform.machine() in ("x86_64", "AMD64")


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
        [compiler, *WARNINGS, f"-I{ROOT / 'csrc'}", *flags, *files, "-lm", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return program


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
        operands = [flat[i].view(torch.uint8).numpy().tobytes() if used[i] else b"" for i in range(3)]
        names = b"" if ids is None else ids.numpy().tobytes()
        dims = [
            (n, logical[d] % 2**64, *[strides[d]] * 4, int(ids is not None and d == dim)) for d, n in enumerate(shape)
        ]
        head = (op, _kernel._DTYPES[dtype], key, p, 0, 0, 0, 0, start, len(shape))
        call = struct.pack(_kernel._HEAD, *head) + b"".join(struct.pack(_kernel._DIM, *one) for one in dims)
        sizes = [size * dtype.itemsize, *map(len, operands), len(names), misalign, len(call)]
        self.text.append(struct.pack("<7q", *sizes) + call + b"".join(operands) + names)

        index = torch.full((), start % 2**63, dtype=torch.int64)
        for d, n in enumerate(shape):
            along = ids if ids is not None and d == dim else torch.arange(n)
            index = index + (along * logical[d]).view(-1, *[1] * (len(shape) - 1 - d))
        output = torch.full((size * dtype.itemsize,), 0xAA, dtype=torch.uint8).view(dtype)
        torch.as_strided(output, shape, strides).copy_(values(op, x, second, third, key, p, index.expand(shape)))
        self.expected.append((op, output))

    def check(self, program, variant, *before):
        done = subprocess.run([*before, str(program), variant], input=b"".join(self.text), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        left = done.stdout
        for number, (op, expected) in enumerate(self.expected):
            size = expected.numel() * expected.itemsize
            found = torch.frombuffer(bytearray(left[:size]), dtype=expected.dtype)
            if op in (_kernel.GELU, _kernel.GELU_BACKWARD) and found.dtype == torch.float64:
                torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)  # another C library's erfc
            else:
                assert torch.equal(bits(found + 0.0), bits(expected + 0.0)), (number, variant)
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


@pytest.fixture(scope="module")
def cases():
    """Every op and dtype in every form of walk: runs with tails, shared, scattered, named and tiled."""
    cases = Cases()
    for op in range(7):
        for dtype in FLOATS:
            for p in (0.5, 0.1, 1.0 if op != _kernel.RELU_BACKWARD else 0.9):
                cases.add(op, dtype, (1237,), (1,), 11 * op + 1, p, start=2**61 + 5, misalign=op)
            cases.add(op, dtype, (40, 23), (29, 1), 5, 0.3, start=3)
            cases.add(op, dtype, (31, 17), (2, 70), 6, 0.3, misalign=1)
            cases.add(op, dtype, (300, 70), (1, 300), 7, 0.1)
    for dtype in FLOATS:
        for length in (1, 2, 15, 16, 17, 63, 64, 65, 2047, 2048, 2049, 70_001):
            cases.add(_kernel.DROPOUT, dtype, (length,), (1,), length, 0.3, start=2**40 + length, misalign=length % 8)
        cases.add(_kernel.DROPOUT, dtype, (5, 9, 33), (297, 33, 1), 8, 0.3, logical=[9, 1, 0])
        cases.add(_kernel.DROPOUT, dtype, (5, 9, 33), (297, 33, 1), 8, 0.3, logical=[33, 0, 1])
        cases.add(_kernel.DROPOUT, dtype, (5, 9, 33), (297, 1, 9), 8, 0.3)
        cases.add(_kernel.DROPOUT, dtype, (3, 90, 500), (45000, 1, 90), 9, 0.1)
        cases.add(_kernel.DROPOUT, dtype, (3, 300, 49), (14700, 1, 300), 9, 257 / 65536)
        for height in (2, 3, 8, 9, 16, 31, 33, 64, 65):
            cases.add(_kernel.DROPOUT, dtype, (2, height, 75), (75 * height, 1, height), height, 0.3, start=height)
        cases.add(_kernel.DROPOUT, dtype, (2, 9, 5, 24), (1080, 24, 216, 1), 4, 0.3)  # heads
        for dim in (0, 1):
            ids = torch.tensor([5, 0, 2**33, 7, 7, 1])
            cases.add(_kernel.DROPOUT, dtype, (6, 6, 20), (120, 20, 1), 3, 0.3, ids=ids, dim=dim)
    return cases


def present():
    from conftest import _variants

    return _variants()


def test_sanitizers_find_nothing(cases, tmp_path):
    need("cc")
    program = build(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for variant in present():
        cases.check(program, variant)


def test_neon_on_an_emulated_arm(cases, tmp_path):
    need("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program = build(tmp_path, "-O2", "-static", compiler="aarch64-linux-gnu-gcc")
    for variant in ("neon", "scalar"):
        cases.check(program, variant, "qemu-aarch64")


@pytest.mark.skipif(not ON_X86, reason="AVX-512 is for x86")
def test_avx512_in_plain_c(cases, tmp_path):
    # SIMDe's intrinsics in place of the machine's, so that the source is run even where the machine lacks them.
    need("cc")
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        if os.environ.get("CI"):
            pytest.fail("CI installs libsimde-dev; see .ci/run")
        pytest.skip("needs SIMDe (Debian: libsimde-dev)")
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    text = (sources / "avx512.c").read_text()
    assert text.count("<immintrin.h>") == text.count("#pragma GCC") == 1
    text = "".join(line for line in text.splitlines(True) if not line.startswith("#pragma GCC"))
    (sources / "avx512.c").write_text(text.replace("<immintrin.h>", '"avx512_in_c.h"'))
    shutil.copy(HERE / "avx512_in_c.h", sources)
    flags = ["-std=gnu11", "-w", "-O2", "-mavx2", "-mf16c", "-D__builtin_cpu_supports(x)=1", f"-I{ROOT / 'csrc'}"]
    cases.check(build(tmp_path, *flags, sources=sources), "avx512")
