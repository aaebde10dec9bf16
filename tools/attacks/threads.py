"""Attack: several threads use one object at once; each answer is right, or refused at once."""

from __future__ import annotations

import copy
import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import puredrop
from attacks.outcome import Choices, Outcome

__all__ = ["PROMISE", "attack"]

PROMISE = "threads that share a model, an ensemble or a key get right answers, or are refused; no model is changed"
_THREADS, _CALLS = 4, 5

Work = Callable[[int], bool]
"""Use the shared object in the thread of a number, and return whether the answer was right."""


def attack(cases: int, seed: int, first: int = 0) -> Outcome:
    """Let four threads use an object five times each in every case."""
    outcome, refused = Outcome(PROMISE), 0
    scenarios = list(_SCENARIOS)
    with _switching():
        for number in range(first, first + cases):
            choices = Choices("threads", seed, number)
            name = scenarios[number % len(scenarios)]
            work, may_refuse = _SCENARIOS[name](choices)
            counts = _in_threads(work)
            allowed = {text for text in counts if (may_refuse and "another thread" in text) or "is open" in text}
            refused += sum(counts[text] for text in allowed)
            outcome.cases += 1
            wrong = {text: count for text, count in counts.items() if text not in allowed | {"right"}}
            if wrong:
                outcome.failures[number] = f"{name}: {wrong}"
    calls = outcome.cases * _THREADS * _CALLS
    outcome.detail = f"{len(scenarios)} scenarios, {_THREADS} threads; {calls} calls, {refused} refused"
    return outcome


@contextmanager
def _switching() -> Iterator[None]:
    """Let threads take turns as often as Python can, without the collector, which deadlocks torch's generators.

    Up to Python 3.11 a collection inside of `Generator.get_state` lets another thread run while its lock is held.
    """
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    gc.disable()
    sys.setswitchinterval(1e-6)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(before)
        gc.enable()
        gc.collect()


def _in_threads(work: Work) -> Counter[str]:
    counts, start = Counter[str](), threading.Barrier(_THREADS)

    def loop(number: int) -> list[str]:
        start.wait()
        said = []
        for _ in range(_CALLS):
            try:
                said.append("right" if work(number) else "wrong answer")
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    with ThreadPoolExecutor(_THREADS) as pool:
        for said in pool.map(loop, range(_THREADS)):
            counts.update(said)
    return counts


def _net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))


def _rows(number: int, count: int = 12) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(number))


def _ensemble(choices: Choices) -> tuple[Work, bool]:
    seed = choices.randrange(1000)
    masks: Literal["shared", "independent"] = "shared" if choices.chance(0.5) else "independent"
    model = _net(seed).train(choices.chance(0.5))
    ensemble = puredrop.DropoutEnsemble(model, masks=masks)
    alone = [puredrop.DropoutEnsemble(_net(seed), masks=masks).predict(_rows(i), members=16) for i in range(_THREADS)]
    training = model.training

    def work(number: int) -> bool:
        found = ensemble.predict(_rows(number), members=16)
        return torch.equal(found.mean, alone[number].mean) and all(m.training == training for m in model.modules())

    return work, False


def _pinned(choices: Choices) -> tuple[Work, bool]:
    model = puredrop.convert(_net(choices.randrange(1000)))
    run = puredrop.reproducible(model, seed=choices.randrange(1000))
    # Other threads may run between the two lines of `work`: then this forward is a later micro-batch of the step.
    expected = [model(_rows(0)).detach() for _ in range(_THREADS)]

    def work(number: int) -> bool:
        run.step = 0
        found = model(_rows(0)).detach()
        return any(torch.equal(found, output) for output in expected)

    return work, True


def _copies(choices: Choices) -> tuple[Work, bool]:
    model = puredrop.convert(_net(choices.randrange(1000)))
    puredrop.reproducible(model, seed=choices.randrange(1000))
    copies = [copy.deepcopy(model) for _ in range(_THREADS)]
    expected, calls = [model(_rows(0)).detach() for _ in range(_CALLS)], [0] * _THREADS

    def work(number: int) -> bool:
        calls[number] += 1
        return torch.equal(copies[number](_rows(0)).detach(), expected[calls[number] - 1])

    return work, False


def _batchwise(choices: Choices) -> tuple[Work, bool]:
    model = _net(choices.randrange(1000))
    model[2] = puredrop.nn.Dropout(0.5, key=puredrop.Key(choices.getrandbits(64)))
    model = puredrop.batchwise(model)

    def gradients(number: int) -> list[Tensor]:
        output = model(_rows(number, 64)).square().sum()
        return [output.detach(), *torch.autograd.grad(output, list(model.parameters()))]

    expected = [gradients(number) for number in range(_THREADS)]
    return lambda number: all(map(torch.equal, gradients(number), expected[number])), False


def _intercepted(choices: Choices) -> tuple[Work, bool]:
    key, x = puredrop.Key(choices.getrandbits(64)), _rows(choices.randrange(1000))

    def dropped() -> Tensor:
        with puredrop.functional.intercept(key):
            return torch.cat([F.dropout(x), F.dropout(x)])

    expected = dropped()
    return lambda number: torch.equal(dropped(), expected), False


def _functional(choices: Choices) -> tuple[Work, bool]:
    """Calls of the kernel with keys, on tensors large enough for its pool of threads."""
    key, count = puredrop.Key(choices.getrandbits(64)), choices.choice((1000, 70_000))
    expected = [puredrop.keep_mask((count,), 0.3, key.fold_in(number)) for number in range(_THREADS)]
    return lambda number: torch.equal(puredrop.keep_mask((count,), 0.3, key.fold_in(number)), expected[number]), False


_SCENARIOS: dict[str, Callable[[Choices], tuple[Work, bool]]] = {
    "one ensemble": _ensemble,
    "one pinned model": _pinned,
    "copies of a pinned model": _copies,
    "one batchwise model": _batchwise,
    "intercept in each": _intercepted,
    "one key": _functional,
}
