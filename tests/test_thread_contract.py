"""The thread contract: what several threads may use at once, each answer right or refused at once, no model changed."""

import contextlib
import copy
import gc
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import puredrop
from puredrop import explain
from puredrop.inspection.watch import positions
from puredrop.thinning import find_chains

THREADS = 4


@pytest.fixture(autouse=True)
def interval():
    """Threads take turns as often as Python can; without the collector, which deadlocks torch's generators.

    Up to Python 3.11 a collection inside of `Generator.get_state` lets another thread run while its lock is held.
    """
    before = sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    gc.enable()
    gc.collect()


def net(drop=nn.Dropout):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), drop(0.5), nn.Linear(64, 3))


def rows(number, count=20):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(number))


def in_threads(work, rounds=5):
    """Run work(number of the thread) again and again in several threads, and count what it returns or raises."""
    counts, start = Counter(), threading.Barrier(THREADS)

    def loop(number):
        start.wait()
        for _ in range(rounds):
            try:
                result = work(number)
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            counts[result] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(loop, range(THREADS)))
    return counts


def state_of(model):
    """What users see of a model: modes, hooks, classes, attributes, buffers."""
    modules = [
        (name, type(module), module.training, sorted(vars(module)), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    return modules, {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    modules, values = state_of(model)
    assert modules == before[0]
    assert all(torch.equal(values[name], value) for name, value in before[1].items())


@pytest.mark.parametrize("masks", ["shared", "independent"])
@pytest.mark.parametrize("training", [True, False])
def test_one_ensemble(masks, training):
    model = net().train(training)
    before, position = state_of(model), positions()
    ensemble = puredrop.DropoutEnsemble(model, masks=masks)
    expected = [puredrop.DropoutEnsemble(net().train(training), masks=masks).predict(rows(i)) for i in range(THREADS)]

    def work(number):
        found = ensemble.predict(rows(number))
        return torch.equal(found.mean, expected[number].mean) and torch.equal(found.variance, expected[number].variance)

    assert in_threads(work) == {True: 5 * THREADS}
    assert_unchanged(model, before)
    assert positions() == position


def test_ensembles_explanations_and_lists_of_sites_while_the_model_trains():
    """Each thread does another thing with one model; the training is bit for bit that of a model alone."""

    def train(model, steps=30):
        run = puredrop.reproducible(model, seed=1, functional=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        run.attach(optimizer)
        losses = []
        for step in range(steps):
            losses.append(model(rows(step)).square().mean())
            losses[-1].backward()
            optimizer.step()
        run.release()
        return torch.stack(losses).detach()

    expected = train(puredrop.convert(net()))
    model = puredrop.convert(net())
    x, y = rows(99), torch.arange(20) % 3
    mean = puredrop.DropoutEnsemble(model).predict(x).mean
    gap = repr(explain.weight_scaling_gap(model, x, members=16))
    listed = str(puredrop.sites(model, x))

    def work(number):
        if number == 0:
            return torch.equal(train(model), expected)
        if number == 1:
            return torch.equal(puredrop.DropoutEnsemble(model).predict(x).mean, mean)
        if number == 2:
            return repr(explain.weight_scaling_gap(model, x, members=16)) == gap
        return str(puredrop.sites(model, x)).split() == listed.split()

    model.eval()[1].momentum = 0.0  # running statistics stay, so that predictions do
    for layer in model.modules():
        layer.training = True
    assert in_threads(work, rounds=3) == {True: 3 * THREADS}
    assert all(module.training for module in model.modules())
    assert y.max() == 2


def test_one_pinned_model_gives_its_masks_or_refuses():
    model = puredrop.convert(net())
    run = puredrop.reproducible(model, seed=1)
    # Other threads may run between the two lines of `work`: then this forward is a later micro-batch of the step.
    expected = [model(rows(0)).detach() for _ in range(THREADS)]

    def work(number):
        run.step = 0
        found = model(rows(0)).detach()
        return any(torch.equal(found, output) for output in expected)

    counts = in_threads(work, rounds=40)
    wrong = [text for text in counts if text is not True and "another thread" not in str(text)]
    assert not [text for text in wrong if "while a forward is open" not in str(text)], wrong
    assert counts[True]
    run.step = 0
    assert torch.equal(model(rows(0)).detach(), expected[0])
    run.release()


def test_a_layer_of_a_pinned_model_that_runs_elsewhere_is_refused():
    entered, leave = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = puredrop.nn.Dropout(), puredrop.nn.Dropout()

        def forward(self, x):
            x = self.first(x)
            entered.set()
            assert leave.wait(10)
            return self.second(x)

    model = Slow()
    run = puredrop.reproducible(model, seed=1)
    leave.set()
    expected = model(rows(0))
    run.step = 0
    leave.clear()
    entered.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model, rows(0))
        assert entered.wait(10)
        for call in (model, model.second):
            with pytest.raises(RuntimeError, match=r"used while another thread runs it.*copy\.deepcopy"):
                call(rows(0))
        leave.set()
        assert torch.equal(running.result(), expected)
    run.step = 0
    assert torch.equal(model(rows(0)), expected)


def test_copies_of_a_pinned_model_run_at_once():

    model = puredrop.convert(net())
    puredrop.reproducible(model, seed=1)
    copies = [copy.deepcopy(model) for _ in range(THREADS)]
    expected = [model(rows(0)).detach() for _ in range(3)]
    rounds = [0] * THREADS

    def work(number):
        rounds[number] += 1
        return torch.equal(copies[number](rows(0)).detach(), expected[rounds[number] - 1])

    assert in_threads(work, rounds=3) == {True: 3 * THREADS}


def test_one_batchwise_model():
    def gradients(model, number):
        """Gradients with a key that only this thread's numbers determine."""
        output = model(rows(number, 64)).square().sum()
        return [output.detach(), *torch.autograd.grad(output, list(model.parameters()))]

    model = net(nn.Dropout)
    model[3] = puredrop.nn.Dropout(0.5, key=puredrop.Key(3))
    model[1] = nn.Identity()
    model = puredrop.batchwise(model)
    expected = [gradients(model, number) for number in range(THREADS)]

    def work(number):
        return all(map(torch.equal, gradients(model, number), expected[number]))

    assert in_threads(work, rounds=30) == {True: 30 * THREADS}


def test_one_intercept_in_several_threads_is_refused_and_one_in_each_is_right():
    x = torch.ones(64)
    expected = dropped_twice(puredrop.functional.intercept(puredrop.Key(1)), x)
    assert in_threads(
        lambda number: torch.equal(dropped_twice(puredrop.functional.intercept(puredrop.Key(1)), x), expected)
    ) == {True: 5 * THREADS}
    block = puredrop.functional.intercept(puredrop.Key(1))
    with block, ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=r"open in another thread.*fold_in"):
        pool.submit(dropped_twice, block, x).result()
    with ThreadPoolExecutor(1) as pool:  # one after the other is right
        assert pool.submit(dropped_twice, block, x).result().ne(0).any()


def dropped_twice(block, x):
    with block:
        return torch.cat([F.dropout(x), F.dropout(x)])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_region_of_an_earlier_forward_is_not_run_again_while_the_model_runs(reentrant):
    entered, leave = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop, self.is_slow = nn.Linear(8, 8), puredrop.nn.Dropout(), False

        def block(self, x):
            if self.is_slow:
                entered.set()
                assert leave.wait(10)
            return self.drop(self.linear(x).tanh())

        def forward(self, x):
            return self.drop(torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant))

    model = Slow()
    run = puredrop.reproducible(model, seed=1)
    x = rows(0).requires_grad_()
    outputs = [model(x) for _ in range(3)]
    (expected,) = torch.autograd.grad(outputs[0].sum(), x) if not reentrant else (None,)
    run.step = 0
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(model, x).result()
        model.is_slow = True
        second = pool.submit(model, x)
        assert entered.wait(10)
        with pytest.raises(RuntimeError, match="while another thread runs it"):
            first.sum().backward()
        leave.set()
        assert torch.equal(second.result(), outputs[1])
    model.is_slow = False
    assert torch.equal(model(x), outputs[2])
    run.step = 0
    if not reentrant:
        assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], expected)


def test_an_interrupted_forward_leaves_the_model_as_after_any_error():
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.error = puredrop.nn.Dropout(), None

        def forward(self, x):
            x = self.drop(x)
            if self.error:
                raise self.error
            return F.dropout(x, 0.5)

    model = Interrupted()
    run = puredrop.reproducible(model, seed=1)
    expected = [model(rows(0)) for _ in range(2)]
    for error in (ValueError(), KeyboardInterrupt(), SystemExit()):
        run.step = 0
        model.error = error
        with pytest.raises(type(error)):
            model(rows(0))
        model.error = None
        assert torch.equal(model(rows(0)), expected[0])
        assert torch.equal(model(rows(0)), expected[1])
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(rows(0))
    run.step = 0
    model.error = SystemExit()

    def end():
        with contextlib.suppress(SystemExit):
            model(rows(0))

    thread = threading.Thread(target=end)  # passes by torch's hooks, as at the end of a thread
    thread.start()
    thread.join()
    model.error = None
    assert torch.equal(model(rows(0)), expected[0])


def test_a_copy_of_a_running_model_does_not_run():
    copies = []

    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = puredrop.nn.Dropout()

        def forward(self, x):
            if not copies:
                copies.append(None)
                with ThreadPoolExecutor(1) as pool:
                    copies[0] = pool.submit(copy.deepcopy, self).result()
            return self.drop(x)

    model = Copied()
    puredrop.reproducible(model, seed=1)
    expected = model(rows(0))
    assert torch.equal(copies[0](rows(0)), expected)
    assert torch.equal(model(rows(0)), copies[0](rows(0)))


def test_compiled_and_plain_models_of_another_thread_run_while_a_model_is_traced():
    plain, x = net().eval(), rows(0)
    compiled = torch.compile(net().eval(), backend="eager")
    expected, found = [plain(x), compiled(x)], []

    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 3)

        def forward(self, x):
            x = self.drop(self.first(x).relu())
            with ThreadPoolExecutor(1) as pool:
                found.extend(pool.submit(lambda: [plain(rows(0)), compiled(rows(0))]).result())
            return self.last(x)

    search = find_chains(Waiting())
    assert all(map(torch.equal, found, expected))
    assert len(found) == 2
    assert [chain.path for chain in search.chains] == ["drop"]
