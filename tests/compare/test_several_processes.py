"""`puredrop compare` on several processes: the numbers of one."""

import json

import pytest
import quick

import processes

SMALL = ["--rows", "200", "--hidden", "32,16", "--rates", "0.5,0.3", "--seeds", "5", "--epochs", "4"]
ARMS = ["--arms", "none,dropout,networks"]


def run(size, out, *options, **environment):
    return processes.run(
        quick.__file__, "compare", "digits", "--out", out, *SMALL, *options, size=size, env=environment
    )


def numbers(out):
    results = json.loads((out / "results.json").read_text())
    del results["created"], results["checksum"]
    for arm in results["arms"].values():
        arm.pop("seconds_per_epoch")
    weights = [(out / f"weights-{name}.safetensors").read_bytes() for name in ("none", "dropout", "networks")]
    return results, weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(1, out, *ARMS).returncode == 0
    return numbers(out)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.integration)])
def test_processes_share_the_seeds(alone, size, tmp_path):
    done = run(size, tmp_path / "run", *ARMS)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "run") == alone
    assert done.stdout.count("page ") == 1  # one process speaks


@pytest.mark.integration
def test_more_processes_than_seeds(tmp_path):
    done = run(3, tmp_path / "run", "--seeds", "2")
    assert "--seeds is 2, fewer than the 3 processes that train them" in done.stderr
    assert done.stderr.count("puredrop compare: error") == 1
    assert not (tmp_path / "run").exists()


def test_a_rank_without_a_group_is_no_reason_for_silence(tmp_path):
    """Batch systems set RANK too."""
    done = run(1, tmp_path / "run", "--seeds", "1", RANK="3")
    assert done.returncode == 2
    assert "--seeds is 1; expected at least 2" in done.stderr
