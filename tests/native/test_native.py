"""The compiled library alone, fed by a driver: under sanitizers, on an emulated Arm, and as AVX-512 in plain C.

Where a compiler or an emulator is missing the test is skipped with the reason; in CI, which installs them, it fails.
"""

import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from driving import HERE, ROOT, SANITIZED, Cases, build, need

from oracles import FLOATS
from puredrop.ops import _kernel

pytestmark = pytest.mark.integration  # the core runs the same code, compiled for this machine, in tests/ops
ON_X86 = platform.machine() in ("x86_64", "AMD64")


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
    # Few ties may wait, so that they are settled in the middle of a draw, which else happens to one in 10^10.
    program = build(tmp_path, *SANITIZED, "-DPUREDROP_CHECKS", "-DTIES_WAIT=1")
    for variant in present():
        cases.check(program, variant)


def test_threads_race_for_nothing(cases, tmp_path):
    need("cc")
    program = build(tmp_path, "-O1", "-g", "-fsanitize=thread")
    for variant in present():
        cases.check(program, variant, threads=16)


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
