"""The examples run, each where what it needs is there."""

import importlib.util
from pathlib import Path

import pytest

import processes

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "by_hand": (None, "the same masks under the same key: True"),
    "hugging_face": ("transformers", "again with the same seed"),
    "timm_vit": ("timm", "eval outputs as before: True"),
    "lightning_module": ("lightning", "the rate after 12 steps: 0.499"),
    "resume": (None, "the same weights at step 20: True"),
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "ddp", "tensor_parallel"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.integration if needed else ()) for name, (needed, _) in SAYS.items()]
)
def test_it_says_what_it_should(name, tmp_path):
    needed, last = SAYS[name]
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}: pip install 'puredrop[libraries,vision]'")
    assert last in output_of(name, tmp_path)


def output_of(name, folder, size=1):
    done = processes.run(EXAMPLES / f"{name}.py", size=size, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_print_what_one_does(tmp_path):
    alone, together = (output_of("ddp", tmp_path, size) for size in (1, 2))
    assert alone == together
    assert alone.count("loss") == 5
    assert "at step 40" in alone


def test_parallel_layers_say_what_they_should(tmp_path):
    output = output_of("tensor_parallel", tmp_path, 2)
    assert "DTensors, the masks of one process: True" in output
    assert "without a window: site '2' drops from a plain tensor of shape (8, 32) that is a part of one" in output
    assert "plain tensors with one: True" in output


RUN = """
import sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=300, kernel_name="python3").execute()
nbformat.write(book, sys.argv[2])
"""


@pytest.mark.integration
def test_the_notebook_runs_and_draws(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: pip install 'puredrop[dev]'")
    done = processes.run("-c", RUN, EXAMPLES / "explain.ipynb", "run.ipynb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = [
        one for cell in nbformat.read(tmp_path / "run.ipynb", as_version=4).cells for one in cell.get("outputs", [])
    ]
    said = "".join(one["text"] for one in outputs if one["output_type"] == "stream" and one["name"] == "stdout")
    for text in ("Gauss-Newton says", "from the ridge solution", "interaction share", "variance of the gradient"):
        assert text in said
    figures = [one["data"].get("application/vnd.plotly.v1+json") for one in outputs if "data" in one]
    assert len([figure for figure in figures if figure]) == 6
