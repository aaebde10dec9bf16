"""The examples run, each where what it needs is there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "by_hand": (None, "the same masks under the same key: True"),
    "hugging_face": ("transformers", "again with the same seed"),
    "timm_vit": ("timm", "eval outputs as before: True"),
    "lightning_module": ("lightning", "the rate after 12 steps: 0.499"),
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_it_says_what_it_should(name, tmp_path):
    needed, last = SAYS[name]
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}: pip install 'puredrop[libraries,vision]'")
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert last in found.stdout
