"""A watched model under compilers, exporters and wrappers."""

import pytest
import torch
from loops import Loop, Net, X, reported
from torch import nn
from torch._dynamo.testing import CompileCounter

import puredrop
from puredrop import watch


@pytest.fixture
def count_compilations():
    torch._dynamo.reset()
    counter = CompileCounter()
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("way", ["before", "after", "in place", "within", "wrapped"])
def test_compiled(way, fullgraph, count_compilations):
    """Watched before and after compilation, and as a part of a compiled function, where the hook is traced."""

    def compiled(function):
        return torch.compile(function, fullgraph=fullgraph, backend=count_compilations)

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    call = compiled(model) if way == "after" else model
    watched = watch(call, optimizer)
    if way == "before":
        call = compiled(model)
    elif way == "in place":
        model.compile(fullgraph=fullgraph, backend=count_compilations)
    elif way == "within":
        call = compiled(lambda x: model(x) * 2)
    elif way == "wrapped":
        call = compiled(nn.Sequential(model))
    loop = Loop.__new__(Loop)
    loop.model, loop.call, loop.optimizer, loop.watch = model, call, optimizer, watched
    for _ in range(6):
        model.train()
        loop.step()
        model.eval()
        loop.evaluate()
    assert count_compilations.frame_count == 2  # one graph for training, one for evaluation
    assert loop.found == []
    assert watched.step == 6
    with reported("PD601"):
        loop.step()
    model.train()
    with reported("PD602"):
        loop.evaluate()
        loop.step()
        assert len(watched.report) == 2
    assert count_compilations.frame_count <= 4


@pytest.mark.parametrize("is_given", [True, False])
def test_a_compiled_training_step(is_given, count_compilations):
    """Counts of steps and forwards are no constants of a program."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, optimizer if is_given else None)

    @torch.compile(backend=count_compilations)
    def step():
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    compiled = count_compilations.frame_count
    for _ in range(9):
        step()
    assert count_compilations.frame_count == compiled
    assert watched.report.ok
    assert watched.step == watched.report.training_forwards == 12
    model.eval()
    with reported("PD601"):
        step()
    watched.stop()


def test_a_rate_on_a_schedule_breaks_no_graph(count_compilations):
    model = nn.Sequential(nn.Linear(6, 6), puredrop.nn.Dropout(0.5))
    with watch(model) as watched:
        puredrop.schedules.RateScheduler(model, puredrop.schedules.early(0.5, 3))
        torch.compile(lambda x: model(x) * 2, fullgraph=True, backend=count_compilations)(X)
        assert watched.report.training_forwards == 1
    assert count_compilations.frame_count == 1


def test_inductor():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, optimizer)
    compiled = torch.compile(lambda x: model(x).sum(), fullgraph=True)
    compiled(X).backward()
    optimizer.step()
    assert watched.report.training_forwards == 1
    assert watched.report.ok


def test_exported_and_traced():
    loop = Loop()
    loop.model.eval()
    program = torch.export.export(loop.model, (X,))
    assert torch.equal(program.module()(X), loop.model(X))
    assert len(list(torch.fx.symbolic_trace(loop.model).graph.nodes)) > 3
    torch.func.vmap(loop.model)(X)
    loop.model.train()
    loop.step()
    assert loop.found == []


def test_data_parallel_in_one_process():
    loop = Loop(nn.DataParallel(Net()))
    loop.model.eval()
    with reported(r"\(model\): error PD601"):
        loop.step()
