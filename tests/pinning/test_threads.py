"""Pinned models in several threads: each gives what it gives alone, and the patch of checkpointing comes and goes."""

import gc
import sys
import threading

import pytest
import torch
from test_recompute import WAYS, Checkpointed, gradients
from torch.utils import checkpoint

import puredrop
from puredrop.inspection.state import stateful
from puredrop.pinning._recompute import unwatch_checkpoints

X = torch.randn(2, 6, 5, 16, generator=torch.Generator().manual_seed(0))
ROUNDS = 12


def train(way, number):
    torch.manual_seed(number)
    model = Checkpointed(WAYS[way]).train()
    run = puredrop.reproducible(model, seed=number)
    steps = [gradients(model, run, X[number]) for _ in range(ROUNDS)]
    run.release()
    return steps


@pytest.mark.parametrize("way", ["non-reentrant", "reentrant"])
def test_two_pinned_models_in_two_threads_do_not_reset_each_other(way):
    alone = [train(way, number) for number in (0, 1)]
    models = [Checkpointed(WAYS[way]).train() for _ in range(2)]  # made here: torch's generator is shared by threads
    for number, model in enumerate(models):
        torch.manual_seed(number)
        model.load_state_dict(Checkpointed(WAYS[way]).state_dict())
    found, errors = [None, None], []
    barrier = threading.Barrier(2)

    def work(number):
        try:
            run = puredrop.reproducible(models[number], seed=number)
            barrier.wait()
            found[number] = [gradients(models[number], run, X[number]) for _ in range(ROUNDS)]
            run.release()
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    for steps, expected in zip(found, alone, strict=True):
        for one, other in zip(steps, expected, strict=True):
            torch.testing.assert_close(one, other)


def entries():
    return vars(checkpoint._CheckpointFrame)["__init__"], vars(checkpoint.CheckpointFunction)["forward"]


@pytest.fixture
def unpatched():
    """No model of an earlier test is pinned."""
    for forward in list(stateful):
        unwatch_checkpoints(forward)


def pin():
    return puredrop.reproducible(Checkpointed(WAYS["non-reentrant"]).train(), seed=1)


def test_the_patch_goes_with_the_last_pin(unpatched):
    before = entries()
    first, second = pin(), pin()
    assert all(a is not b for a, b in zip(entries(), before, strict=True))
    first.release()
    assert all(a is not b for a, b in zip(entries(), before, strict=True))
    second.release()
    assert entries() == before


def test_the_patch_goes_with_a_model_that_nobody_released(unpatched):
    before = entries()
    run = pin()
    assert entries() != before
    del run
    gc.collect()
    assert entries() == before


def test_another_patch_stays_in_effect(unpatched, monkeypatch):
    original = checkpoint.CheckpointFunction.forward
    calls = []

    def theirs(ctx, *arguments):
        calls.append(len(arguments))
        return original(ctx, *arguments)

    monkeypatch.setattr(checkpoint.CheckpointFunction, "forward", staticmethod(theirs))
    model = Checkpointed(WAYS["reentrant"]).train()
    run = puredrop.reproducible(model, seed=1)
    expected = gradients(model, run, X[0])
    assert calls
    run.release()
    assert checkpoint.CheckpointFunction.forward is theirs
    monkeypatch.undo()
    run = puredrop.reproducible(model, seed=1)
    assert all(map(torch.equal, gradients(model, run, X[0]), expected))
    run.release()


def test_a_patch_made_on_top_of_ours_is_not_removed(unpatched, monkeypatch):
    original = vars(checkpoint.CheckpointFunction)["forward"]
    run = pin()
    ours = checkpoint.CheckpointFunction.forward
    theirs = staticmethod(lambda ctx, *arguments: ours(ctx, *arguments))
    monkeypatch.setattr(checkpoint.CheckpointFunction, "forward", theirs)
    run.release()
    assert vars(checkpoint.CheckpointFunction)["forward"] is theirs
    monkeypatch.undo()
    checkpoint.CheckpointFunction.forward = original
