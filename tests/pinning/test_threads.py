"""Pinned models in several threads: each gives what it gives alone, and the patch of checkpointing comes and goes."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from nets import Net
from test_recompute import WAYS, Checkpointed, gradients
from torch import nn
from torch.utils import checkpoint

import puredrop
from puredrop.inspection.state import live_forwards
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
    for forward in live_forwards():
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


@pytest.mark.parametrize("way", ["non-reentrant", "reentrant"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["the whole model", "blocks"])
def test_a_model_moves_from_thread_to_thread(way, is_whole):
    """Steps in a worker and in this thread by turns, and backward in another thread than its forward."""
    torch.manual_seed(0)
    model = (Net() if is_whole else Checkpointed(WAYS[way])).train()
    call = (lambda x: WAYS[way](model, x)) if is_whole else model
    run = puredrop.reproducible(model, seed=1)

    def loss(step):
        run.step = step
        return call(X[0].clone().requires_grad_()).square().sum()

    def gradients_of(loss):
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = [gradients_of(loss(step)) for step in range(4)]
    with ThreadPoolExecutor(1) as pool:
        for step in range(4):
            places = (pool.submit, lambda function, *arguments: function(*arguments))
            forward, backward = places[step % 2], places[step // 2]
            result = forward(loss, step)
            result = backward(gradients_of, result.result() if hasattr(result, "result") else result)
            found = result.result() if hasattr(result, "result") else result
            assert all(map(torch.equal, found, expected[step])), step
    if way == "non-reentrant":  # the other warns where no gradient is wanted, as a list of sites has none
        puredrop.sites(model, X[0])
        assert run.step == 3
    run.release()


def test_models_are_pinned_and_released_while_another_trains():
    """A registry that was iterated while another thread changed it failed once in a hundred steps."""
    torch.manual_seed(0)
    model = Checkpointed(WAYS["non-reentrant"]).train()
    run = puredrop.reproducible(model, seed=1)
    expected = gradients(model, run, X[0])
    others, stop, errors = [nn.Sequential(nn.Dropout()) for _ in range(3)], threading.Event(), []

    def pin_and_release():
        while not stop.is_set():
            try:
                runs = [puredrop.reproducible(other) for other in others]
                [other.release() for other in runs]
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=pin_and_release)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        assert all(all(map(torch.equal, gradients(model, run, X[0]), expected)) for _ in range(100))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
        run.release()
    assert not errors
