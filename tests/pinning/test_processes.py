"""Real processes (gloo, torchrun): the masks of one process, and its weights up to the reduction's rounding."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import work
from nets import MLP, masks, same, stacked
from torch import nn

import puredrop

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def start(case, size, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, work.__file__, case, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(case, size, folder):
    """What each rank saw."""
    process = start(case, size, folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def alone(parts_of=lambda x: x.chunk(work.MICRO)):
    model = work.net()
    return work.train(model, puredrop.reproducible(model, work.SEED), parts_of)


def worst(weights, expected):
    return max((weights[name] - value).abs().max().item() for name, value in expected.items())


def gathered(ranks, dealt="batches"):
    """Masks of each forward, the ranks' one below the other, or their rows in turn."""
    together = stacked if dealt == "batches" else in_turn
    return [together(parts) for parts in zip(*(rank["masks"] for rank in ranks), strict=True)]


def in_turn(parts):
    return [torch.stack(pieces, 1).flatten(0, 1) for pieces in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("case", "size"), [("ddp", 2), ("ddp", 4), ("ddp_wrapped_first", 2), ("ddp_sampler", 2), ("fsdp", 2)]
)
def test_data_parallel(case, size, tmp_path, record_property):
    ranks = launch(case, size, tmp_path)
    expected = alone()
    for found, whole in zip(
        gathered(ranks, "rows" if case == "ddp_sampler" else "batches"), expected["masks"], strict=True
    ):
        assert same(found, whole)
    difference = max(worst(rank["weights"], expected["weights"]) for rank in ranks)
    record_property("largest difference of a final weight", difference)
    assert difference < 1e-6
    if case == "ddp_wrapped_first":
        assert [len(rank["said"]) for rank in ranks] == [1, 1]  # once
        assert "rank 1 of 2 takes its place among the step's samples from the process group" in ranks[1]["said"][0]


def test_a_batch_in_one_piece_is_its_micro_batches_on_ranks():
    whole = alone(lambda x: [x])["masks"]
    parts = alone()["masks"]
    for step, mask in enumerate(whole):
        assert same(stacked(parts[work.MICRO * step : work.MICRO * (step + 1)]), mask)


def test_names_for_unequal_batches(tmp_path):
    ranks = launch("ddp_named", 2, tmp_path)
    model = work.net()
    puredrop.reproducible(model, work.SEED)
    whole = masks(model, work.batch(0))
    assert {len(rank["ids"]) for rank in ranks} == {5, 27}
    for rank in ranks:
        assert same(rank["masks"][0], [mask[rank["ids"]] for mask in whole])


def test_unequal_batches_without_names_are_refused_before_the_step(tmp_path):
    for rank, found in enumerate(launch("ddp_unequal", 2, tmp_path)):
        assert f"this process was given {4 + rank} samples in this step, others 4 to 5" in found["error"]
        assert "run.sample_ids" in found["error"]
        assert found["unchanged"]


def test_as_many_samples_in_another_order_are_refused_too(tmp_path):
    for found in launch("ddp_another_order", 2, tmp_path):
        assert "this process was given 10 samples in this step" in found["error"]
        assert found["unchanged"]


def mlp_alone():
    model = work.net(MLP)
    return work.forwards(model, puredrop.reproducible(model, work.SEED))


def test_tensor_parallel(tmp_path, record_property):
    expected = mlp_alone()
    for found in launch("tensor_parallel", 2, tmp_path):
        assert all(same(a, b) for a, b in zip(found["masks"], expected["masks"], strict=True))
        difference = worst(found["weights"], expected["weights"])
        record_property("largest difference of a gradient", difference)
        assert difference < 1e-4
        torch.testing.assert_close(found["outputs"], expected["outputs"])


def test_plain_tensors_between_parallel_layers(tmp_path):
    expected = mlp_alone()
    ranks = launch("tensor_parallel_local", 2, tmp_path)
    for rank, found in enumerate(ranks):
        refused = found["none"]
        assert "site 'drop' drops from a plain tensor of shape (16, 16) that is a part of one spread over 2" in refused
        assert "windows={'drop': puredrop.Window(shape, offset)}" in refused
        named = found["named"]
        for forward, whole in zip(named["masks"], expected["masks"], strict=True):
            assert torch.equal(forward[0], whole[0].chunk(2, dim=1)[rank])
            assert torch.equal(forward[1], whole[1])
        torch.testing.assert_close(named["outputs"], expected["outputs"])


def test_sequence_parallel(tmp_path):
    model = nn.Sequential(nn.LayerNorm(16), puredrop.nn.Dropout(0.4), puredrop.nn.GaussianDropout(0.3))
    puredrop.reproducible(model, work.SEED)
    x = work.batch(0)[:, :4]
    expected = masks(model, x)
    model[1].key.keys.forward.batches.begin_step()
    for found in launch("sequence_parallel", 2, tmp_path):
        assert same(found["masks"][0], expected)
        torch.testing.assert_close(found["outputs"], model(x).detach())
        model[1].key.keys.forward.batches.begin_step()


def test_data_and_tensor_parallel(tmp_path):
    expected = mlp_alone()["masks"]
    for found in launch("two_dimensions", 4, tmp_path):
        assert "the model's parts lie on [2] of 4 processes; say which of these share" in found["refused"][0]
        assert "processes, and it is fully sharded too; say which of these share" in found["refused"][1]
        for forward, whole in zip(found["masks"], expected, strict=True):
            assert same(forward, [mask.chunk(2)[found["dp"]] for mask in whole])


def test_a_batch_that_is_one_dtensor(tmp_path):
    model = nn.Sequential(puredrop.nn.Dropout(0.4), nn.Tanh(), puredrop.nn.DropPath(0.5), nn.Dropout(0.2))
    puredrop.reproducible(model, work.SEED)
    expected = [masks(model, part) for part in work.batch(0, MLP).chunk(work.MICRO)]
    for found in launch("spread_batch", 2, tmp_path):
        assert all(same(a, b) for a, b in zip(found["masks"], expected, strict=True))


def kill_at(step, size, folder):
    """Start on so many processes, and kill them all with no chance to clean up once a step is done."""
    process = start("elastic", size, folder)
    deadline = time.monotonic() + 120
    while not (folder / f"run-{step}.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    for worker in Path("/proc").glob("[0-9]*"):  # torchrun's children have sessions of their own
        try:
            if str(folder) in (worker / "cmdline").read_text():
                os.kill(int(worker.name), signal.SIGKILL)
        except OSError:
            continue
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_killed_on_four_ranks_resumed_on_two_then_one(tmp_path, record_property):
    kill_at(11, 4, tmp_path)
    kill_at(25, 2, tmp_path)
    (last,) = launch("elastic", 1, tmp_path)
    model = work.net(MLP)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    puredrop.reproducible(model, work.SEED).attach(optimizer)
    sizes, worst_loss = set(), 0.0
    for step in range(40):
        optimizer.zero_grad()
        with work.Masks() as record:
            loss = work.loss_of(model(work.batch(step, MLP, 16)))
        loss.backward()
        optimizer.step()
        for size in (4, 2, 1):
            files = [tmp_path / f"seen-{step}-{rank}-{size}.pt" for rank in range(size)]
            if all(file.exists() for file in files):
                seen = [torch.load(file, weights_only=True) for file in files]
                assert same(stacked([one["masks"] for one in seen]), record.kept)
                worst_loss = max(worst_loss, *((one["loss"] - loss).abs().item() for one in seen))
                sizes.add((step, size))
    assert {step for step, _ in sizes} == set(range(40))
    assert {size for _, size in sizes} == {4, 2, 1}
    difference = worst(last["weights"], dict(model.state_dict()))
    record_property("largest difference of a loss and of a final weight", (worst_loss, difference))
    assert worst_loss < 1e-6
    assert difference < 1e-6
