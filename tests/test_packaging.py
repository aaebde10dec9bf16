"""The wheel with and without a C compiler, and the library in it."""

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from oracles import VECTORS

ROOT = Path(__file__).parents[1]


def build(folder, **environment):
    """Build the wheel; its path and what the build printed."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(ROOT / name, source / name)
    for name in ("csrc", "src"):  # a library that was built in place is none of the sources
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", str(folder), str(source)]
    built = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout
    (wheel,) = folder.glob("*.whl")
    return wheel, built.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return build(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build(tmp_path_factory.mktemp("plain"), CC="/nonexistent/cc")


def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.integration
def test_one_wheel_serves_every_python_of_a_platform(compiled):
    wheel, _ = compiled
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert sum(name.startswith("puredrop/_lib/") for name in names(wheel)) == 1


def test_without_a_compiler_the_install_succeeds_and_says_so_in_one_line(plain, tmp_path):
    wheel, text = plain
    assert wheel.name.endswith("-py3-none-any.whl")
    told = {line.strip() for line in text.splitlines() if line.strip().startswith("puredrop:")}
    assert told == {"puredrop: no working C compiler, so installed without the compiled library; backend: reference"}
    assert not any(name.startswith("puredrop/_lib/") for name in names(wheel))
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import puredrop, torch; print(puredrop.backend(), puredrop.nn.Dropout()(torch.ones(9)).shape, puredrop.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    # -S and a path by hand: an editable install of the checkout would be found first.
    paths = f"import sys; sys.path += {[p for p in sys.path if 'site-packages' in p]!r}; "
    found = subprocess.run(
        [sys.executable, "-S", "-c", paths + code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.startswith(f"reference torch.Size([9]) {tmp_path}"), found.stderr


def test_the_wheel_carries_what_the_package_reads(plain):
    wheel, _ = plain
    data = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.suffix in (".css", ".js", ".j2", ".typed")
    }
    assert len(data) == 7
    assert data <= set(names(wheel))


@pytest.mark.integration  # the core asks the library that the installation built, in tests/ops
@pytest.mark.parametrize("case", VECTORS["philox"], ids=lambda case: case["key"])
def test_the_compiled_generator_gives_the_known_answers(compiled, tmp_path, case):
    wheel, _ = compiled
    (name,) = (name for name in names(wheel) if name.startswith("puredrop/_lib/"))
    library = ctypes.CDLL(zipfile.ZipFile(wheel).extract(name, tmp_path))
    words = (ctypes.c_uint32 * 4)(*[0xDEADBEEF] * 4)
    library.puredrop_philox(ctypes.c_uint64(int(case["key"])), (ctypes.c_uint32 * 4)(*case["counter"]), words)
    assert list(words) == case["words"]
