"""Compiled or eager: the same masks, and no recompilation for another step, batch or block."""

import copy

import pytest
import torch
from nets import MLP, Mixed, Net
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import puredrop

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"  # the compiler's own look at what it is given
)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Count:
    """A backend that counts what it compiles."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return module


def pair(kind):
    """A model, and its twin to compile, pinned alike."""
    torch.manual_seed(0)
    model = kind()
    twin = copy.deepcopy(model)
    return model, puredrop.reproducible(model, 5), twin, puredrop.reproducible(twin, 5)


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (16,)), (Net, (5, 16))])
def test_steps_cost_no_recompilation(kind, shape):
    model, run, twin, twin_run = pair(kind)
    count = Count()
    compiled = torch.compile(twin, backend=count, fullgraph=True)
    x = torch.randn(8, *shape)
    for step in (0, 1, 2, 2**40):
        run.step = twin_run.step = step
        torch.testing.assert_close(compiled(x), model(x))
    assert count.graphs == 1


def test_micro_batches_names_and_sizes_cost_few():
    model, run, twin, twin_run = pair(MLP)
    count = Count()
    compiled = torch.compile(twin, backend=count, fullgraph=True)
    sizes, graphs = [32, 16, 8, 8], []
    for step in (1, 2, 3):
        run.step = twin_run.step = step
        for size in sizes:
            part = torch.randn(size, 16)
            torch.testing.assert_close(compiled(part), model(part))
        run.step = twin_run.step = step
        part, ids = torch.randn(sum(sizes), 16), torch.randperm(sum(sizes))
        run.sample_ids = twin_run.sample_ids = ids
        torch.testing.assert_close(compiled(part), model(part))
        run.sample_ids = twin_run.sample_ids = None
        graphs.append(count.graphs)
        sizes = [size + 1 for size in sizes]
    # The first size, then any size: the first in their step, and later ones, of one size and then of any.
    assert graphs[1] == graphs[2] <= 4


def test_blocks_compiled_one_by_one_share_their_program():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(MLP() for _ in range(12))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, run, twin, twin_run = pair(Stack)
    count = Count()
    for block in twin.blocks:
        block.compile(backend=count, fullgraph=True)
    x = torch.randn(8, 16)
    for step in (0, 1):
        run.step = twin_run.step = step
        torch.testing.assert_close(twin(x), model(x))
    assert count.graphs <= 2


def test_a_compiled_block_in_a_checkpoint():
    from torch.utils.checkpoint import checkpoint

    class Region(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = MLP()

        def forward(self, x):
            x = checkpoint(self.block, x, use_reentrant=False, preserve_rng_state=False)
            return checkpoint(self.block, x, use_reentrant=False, preserve_rng_state=False)

    model, _, twin, _ = pair(Region)
    twin.block.compile(backend="aot_eager")
    x = torch.randn(8, 16)
    for one in (model, twin):
        one(x.clone().requires_grad_()).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_compiled_by_inductor():
    model, run, twin, twin_run = pair(Mixed)
    compiled = torch.compile(twin)
    x = torch.randn(4, 5, 16)
    for step in (0, 1):
        run.step = twin_run.step = step
        for one, call in ((model, model), (twin, compiled)):
            one.zero_grad()
            call(x).square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_a_compiled_function_around_a_pinned_model():
    model, run, twin, twin_run = pair(MLP)
    x = torch.randn(8, 16)
    loss = torch.compile(lambda x: twin(x).square().sum(), backend="eager")
    for step in (0, 1):
        run.step = twin_run.step = step
        torch.testing.assert_close(loss(x), model(x).square().sum())


def test_the_keys_are_read_where_a_captured_graph_would_read_them():
    """What a CUDA graph captured stays where it is: a step writes the new keys in place."""
    model = MLP()
    run = puredrop.reproducible(model)
    pair = model.drop.key.pair
    before, at = pair.clone(), pair.data_ptr()
    run.advance()
    assert model.drop.key.pair is pair
    assert pair.data_ptr() == at
    assert not torch.equal(pair, before)
    key = puredrop.Key(0).fold_in("").fold_in("drop").fold_in(1)
    assert pair.tolist() == [key.tensor().item(), key.fold_in(0).tensor().item()]


def test_models_of_many_sites():
    model = nn.Sequential(*[puredrop.nn.Dropout(0.5) for _ in range(40)])
    run = puredrop.reproducible(model, seed=8)
    for step in (0, 1):
        for path, layer in model.named_children():
            key = puredrop.Key(8).fold_in("").fold_in(path).fold_in(step)
            assert layer.key.pair.tolist() == [key.tensor().item(), key.fold_in(0).tensor().item()]
        run.advance()


def test_tracers_that_would_keep_a_key_are_refused():
    model, x = MLP(), torch.randn(4, 16)
    run = puredrop.reproducible(model)
    for strict in (True, False):
        with pytest.raises(Exception, match="cannot be exported in training mode") as caught:
            torch.export.export(model, (x,), strict=strict)
        assert "run.release()" in str(caught.value)
    with pytest.raises(RuntimeError, match="cannot be exported in training mode"):
        torch.jit.trace(model, (x,))
    with pytest.raises(RuntimeError, match="cannot be exported in training mode"):
        make_fx(model)(x)
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    model.train()
    run.step = 1
    assert not torch.equal(model(x), model.eval()(x))


def test_pipelines_by_tracing_are_refused():
    from torch.distributed.pipelining import SplitPoint, pipeline

    model = nn.Sequential(MLP(), MLP())
    puredrop.reproducible(model)
    with pytest.raises(RuntimeError) as caught:
        pipeline(model, mb_args=(torch.randn(4, 16),), split_spec={"1": SplitPoint.BEGINNING})
    assert "cannot be exported in training mode" in str(caught.value.__cause__)
