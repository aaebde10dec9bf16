"""Real processes (gloo, torchrun): the masks of one process, and its weights up to the reduction's rounding."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import work
from nets import MLP, masks, same, stacked
from torch import nn

import processes
import puredrop

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


NEEDS_EVENTS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="fully_shard calls torch.cpu.Stream.record_event, which torch 2.6 lacks: it runs there on GPUs only",
)


# What is started once for each number of processes, before the tests that read what it left.
CASES = {
    2: (
        *("ddp", "ddp_wrapped_first", "ddp_sampler", "ddp_named", "ddp_unequal", "ddp_another_order"),
        *("tensor_parallel", "tensor_parallel_local", "sequence_parallel", "spread_batch", "fsdp"),
    ),
    4: ("ddp", "two_dimensions"),
}


def launch(cases, size, folder):
    """Run cases one after the other in the same processes, which write what each rank saw."""
    done = processes.run(work.__file__, folder, *cases, size=size)
    assert done.returncode == 0, done.stderr


def seen(case, size, folder):
    """What each rank saw of a case."""
    return [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each rank saw, by case and number of processes; a case that failed ends those after it, too."""
    folders, errors = {}, {}

    def find(case, size=2):
        if size not in folders:
            folders[size] = tmp_path_factory.mktemp(f"ranks-{size}")
            errors[size] = processes.run(work.__file__, folders[size], *CASES[size], size=size).stderr
        assert (folders[size] / f"{case}-{size - 1}.pt").exists(), errors[size]
        return seen(case, size, folders[size])

    return find


def alone(parts_of=lambda x: x.chunk(work.MICRO)):
    model = work.net()
    return work.train(model, puredrop.reproducible(model, work.SEED), parts_of)


def worst(weights, expected):
    return max((weights[name] - value).abs().max().item() for name, value in expected.items())


def gathered(ranks, sharding="batches"):
    """Masks of each forward, the ranks' one below the other, or their rows in turn."""
    together = stacked if sharding == "batches" else in_turn
    return [together(parts) for parts in zip(*(rank["masks"] for rank in ranks), strict=True)]


def in_turn(parts):
    return [torch.stack(pieces, 1).flatten(0, 1) for pieces in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("case", "size"),
    [("ddp", 2), ("ddp", 4), ("ddp_wrapped_first", 2), ("ddp_sampler", 2), pytest.param("fsdp", 2, marks=NEEDS_EVENTS)],
)
def test_data_parallel(case, size, ranks, record_property):
    ranks = ranks(case, size)
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


def test_names_for_unequal_batches(ranks):
    ranks = ranks("ddp_named")
    model = work.net()
    puredrop.reproducible(model, work.SEED)
    whole = masks(model, work.batch(0))
    assert {len(rank["ids"]) for rank in ranks} == {5, 27}
    for rank in ranks:
        assert same(rank["masks"][0], [mask[rank["ids"]] for mask in whole])


def test_unequal_batches_without_names_are_refused_before_the_step(ranks):
    for rank, found in enumerate(ranks("ddp_unequal")):
        assert f"this process got {4 + rank} samples in this step, others 4 to 5" in found["error"]
        assert "run.sample_ids" in found["error"]
        assert found["unchanged"]


def test_as_many_samples_in_another_order_are_refused_too(ranks):
    for found in ranks("ddp_another_order"):
        assert "this process got 10 samples in this step" in found["error"]
        assert found["unchanged"]


def mlp_alone():
    model = work.net(MLP)
    return work.forwards(model, puredrop.reproducible(model, work.SEED))


def test_tensor_parallel(ranks, record_property):
    expected = mlp_alone()
    for found in ranks("tensor_parallel"):
        assert all(same(a, b) for a, b in zip(found["masks"], expected["masks"], strict=True))
        difference = worst(found["weights"], expected["weights"])
        record_property("largest difference of a gradient", difference)
        assert difference < 1e-4
        torch.testing.assert_close(found["outputs"], expected["outputs"])


def test_plain_tensors_between_parallel_layers(ranks):
    expected = mlp_alone()
    for rank, found in enumerate(ranks("tensor_parallel_local")):
        refused = found["none"]
        assert "site 'drop' drops from a plain tensor of shape (16, 16) that is a part of one spread over 2" in refused
        assert "windows={'drop': puredrop.Window(shape, offset)}" in refused
        named = found["named"]
        for forward, whole in zip(named["masks"], expected["masks"], strict=True):
            assert torch.equal(forward[0], whole[0].chunk(2, dim=1)[rank])
            assert torch.equal(forward[1], whole[1])
        torch.testing.assert_close(named["outputs"], expected["outputs"])


def test_sequence_parallel(ranks):
    model = nn.Sequential(nn.LayerNorm(16), puredrop.nn.Dropout(0.4), puredrop.nn.GaussianDropout(0.3))
    puredrop.reproducible(model, work.SEED)
    x = work.batch(0)[:, :4]
    expected = masks(model, x)
    model[1].key.keys.forward.batches.begin_step()
    for found in ranks("sequence_parallel"):
        assert same(found["masks"][0], expected)
        torch.testing.assert_close(found["outputs"], model(x).detach())
        model[1].key.keys.forward.batches.begin_step()


@NEEDS_EVENTS
def test_data_and_tensor_parallel(ranks):
    expected = mlp_alone()["masks"]
    for found in ranks("two_dimensions", 4):
        assert "the model's shards lie on [2] of 4 processes; say which processes share" in found["refused"][0]
        assert "processes, and it is fully sharded too; say which processes share" in found["refused"][1]
        for forward, whole in zip(found["masks"], expected, strict=True):
            assert same(forward, [mask.chunk(2)[found["dp"]] for mask in whole])


def test_a_batch_that_is_one_dtensor(ranks):
    model = nn.Sequential(puredrop.nn.Dropout(0.4), nn.Tanh(), puredrop.nn.DropPath(0.5), nn.Dropout(0.2))
    puredrop.reproducible(model, work.SEED)
    expected = [masks(model, part) for part in work.batch(0, MLP).chunk(work.MICRO)]
    for found in ranks("spread_batch"):
        assert all(same(a, b) for a, b in zip(found["masks"], expected, strict=True))


def kill_at(step, size, folder):
    """Start on so many processes, and kill them all with no chance to clean up once a step is done."""
    process = processes.start(work.__file__, folder, "elastic", size=size)
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


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_killed_on_four_ranks_resumed_on_two_then_one(tmp_path, record_property):
    kill_at(11, 4, tmp_path)
    kill_at(25, 2, tmp_path)
    launch(["elastic"], 1, tmp_path)
    (last,) = seen("elastic", 1, tmp_path)
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
                parts = [torch.load(file, weights_only=True) for file in files]
                assert same(stacked([part["masks"] for part in parts]), record.kept)
                worst_loss = max(worst_loss, *((part["loss"] - loss).abs().item() for part in parts))
                sizes.add((step, size))
    assert {step for step, _ in sizes} == set(range(40))
    assert {size for _, size in sizes} == {4, 2, 1}
    difference = worst(last["weights"], dict(model.state_dict()))
    record_property("largest difference of a loss and of a final weight", (worst_loss, difference))
    assert worst_loss < 1e-6
    assert difference < 1e-6
