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
    "resume": (None, "the same weights at step 20: True"),
    "ddp": (None, "at step 40"),
    "tensor_parallel": (None, "plain tensors with one: True"),
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_it_says_what_it_should(name, tmp_path):
    needed, last = SAYS[name]
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}: pip install 'puredrop[libraries,vision]'")
    assert last in output_of(name, tmp_path, processes=2 if name == "tensor_parallel" else 1)


def output_of(name, folder, processes):
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    found = subprocess.run(
        [sys.executable, *several, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_two_processes_print_what_one_does(tmp_path):
    one, two = (output_of("ddp", tmp_path, processes) for processes in (1, 2))
    assert one == two
    assert one.count("loss") == 5


def test_parallel_layers_say_what_they_should(tmp_path):
    output = output_of("tensor_parallel", tmp_path, 2)
    assert "DTensors, the masks of one process: True" in output
    assert "without a window: site '2' drops from a plain tensor of shape (8, 32) that is a part of one" in output


RUN = """
import sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=300, kernel_name="python3").execute()
nbformat.write(book, sys.argv[2])
"""


def test_the_notebook_runs_and_draws(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: pip install 'puredrop[dev]'")
    line = [sys.executable, "-c", RUN, str(EXAMPLES / "explain.ipynb"), "run.ipynb"]
    found = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    outputs = [
        one for cell in nbformat.read(tmp_path / "run.ipynb", as_version=4).cells for one in cell.get("outputs", [])
    ]
    said = "".join(one["text"] for one in outputs if one["output_type"] == "stream" and one["name"] == "stdout")
    for text in ("Gauss-Newton says", "from the ridge solution", "interaction share", "variance of the gradient"):
        assert text in said
    figures = [one["data"].get("application/vnd.plotly.v1+json") for one in outputs if "data" in one]
    assert len([figure for figure in figures if figure]) == 6
