"""torch.func, compilers, checkpointing and threads."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import puredrop
from oracles import same_bits
from puredrop import Key, keep_mask
from puredrop.functional import dropout

KEY = Key(17)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def drop(x):
    """Something nonlinear on both sides of a dropout."""
    return (dropout(x.sin(), 0.4, key=KEY) ** 3).sum(-1)


def by_mask(x):
    """The same with the mask as a constant."""
    scale = keep_mask(x.shape[-1:], 0.4, KEY).to(x.dtype) * (1 / (1 - torch.tensor(0.4, dtype=torch.float64)))
    return ((x.sin() * scale) ** 3).sum(-1)


F = torch.func
TRANSFORMS = {
    "grad": lambda f: F.grad(f),
    "vjp": lambda f: lambda x: F.vjp(f, x)[1](torch.ones(()).to(x))[0],
    "jvp": lambda f: lambda x: F.jvp(f, (x,), (x.cos(),))[1],
    "jacrev": lambda f: F.jacrev(f),
    "jacfwd": lambda f: F.jacfwd(f),
    "hessian": lambda f: F.hessian(f),
    "jacrev of jacrev": lambda f: F.jacrev(F.jacrev(f)),
    "jvp of grad": lambda f: lambda x: F.jvp(F.grad(f), (x,), (x.cos(),))[1],
    "grad of jvp": lambda f: F.grad(lambda x: F.jvp(f, (x,), (torch.ones_like(x),))[1]),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_torch_func_against_the_mask(name, mapped):
    ours, expected = TRANSFORMS[name](drop), TRANSFORMS[name](by_mask)
    x = torch.randn(*([3] if mapped else []), 12, dtype=torch.float64)
    if mapped:
        ours, expected = F.vmap(ours), F.vmap(expected)
    found = ours(x)
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, expected(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["error", "same", "different"])
def test_vmap_with_an_explicit_key_ignores_the_mode(mode):
    xs = torch.randn(4, 50)
    found = F.vmap(lambda x: dropout(x, 0.5, key=KEY), randomness=mode)(xs)
    assert same_bits(found, torch.stack([dropout(x, 0.5, key=KEY) for x in xs]))
    keys = torch.arange(4)
    found = F.vmap(lambda x, key: dropout(x, 0.5, key=key), randomness=mode)(xs, keys)
    assert same_bits(found, torch.stack([dropout(x, 0.5, key=k) for x, k in zip(xs, keys, strict=True)]))


def test_nested_vmap_randomness():
    xs = torch.ones(3, 4, 200)

    def nested(outer, inner):
        return F.vmap(F.vmap(lambda x: dropout(x, 0.5), randomness=inner), randomness=outer)(xs)

    assert len(nested("different", "different").flatten(0, 1).unique(dim=0)) == 12
    assert len(nested("same", "same").flatten(0, 1).unique(dim=0)) == 1
    outer = nested("different", "same")
    assert torch.equal(outer, outer[:, :1].expand_as(outer))
    assert len(outer[:, 0].unique(dim=0)) == 3
    inner = nested("same", "different")
    assert torch.equal(inner, inner[:1].expand_as(inner))
    assert len(inner[0].unique(dim=0)) == 4


def test_gradients_under_vmap_use_the_mask_of_the_forward():
    xs = torch.randn(5, 100)

    def both(x):
        y, pullback = F.vjp(lambda x: dropout(x, 0.5), x)
        return y, pullback(torch.ones_like(y))[0]

    value, gradient = F.vmap(both, randomness="different")(xs)
    assert torch.equal(value != 0, gradient != 0)
    assert len((value != 0).unique(dim=0)) == 5


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_anomaly_mode_and_saved_tensor_hooks():
    x = torch.randn(50, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True), torch.autograd.graph.save_on_cpu():
        dropout(x, 0.5, key=KEY).square().sum().backward()
    assert torch.equal(x.grad, 2 * dropout(dropout(x.detach(), 0.5, key=KEY), 0.5, key=KEY))


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_a_compiled_function_inside_torch_func(name):
    x = torch.randn(12, dtype=torch.float64)
    found = TRANSFORMS[name](torch.compile(drop, backend="aot_eager"))(x)
    torch.testing.assert_close(found, TRANSFORMS[name](by_mask)(x), rtol=1e-12, atol=1e-12)


def test_vmap_inside_a_compiled_function():
    xs = torch.randn(4, 12, dtype=torch.float64)
    found = torch.compile(F.vmap(drop), fullgraph=True, backend="aot_eager")(xs)
    torch.testing.assert_close(found, F.vmap(by_mask)(xs))


@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "jacfwd"])
def test_derivatives_inside_a_compiled_function_are_refused(name):
    compiled = torch.compile(TRANSFORMS[name](drop), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"torch.func inside of torch.compile"):
        compiled(torch.randn(12, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_static_and_dynamic_shapes(backend, dynamic):
    layers = [puredrop.nn.Dropout(0.3, key=KEY), puredrop.nn.Dropout1d(0.3, key=KEY)]
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), layers[0])
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
    # Each size is compiled anew where shapes are static; Inductor takes seconds for one, aot_eager shows that all are.
    for rows in (3,) if backend == "inductor" and not dynamic else (3, 5, 9):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(compiled(x), model(x))
        hidden = torch.randn(rows, 4, 5)
        assert same_bits(torch.compile(layers[1], backend=backend, dynamic=dynamic)(hidden), layers[1](hidden))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = compiled(x)
            assert y.dtype == torch.bfloat16
            assert torch.equal(
                dropout(torch.ones(rows, 8), 0.3, key=KEY) == 0,
                (y == 0) & (dropout(torch.ones(rows, 8), 0.3, key=KEY) == 0),
            )


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.parametrize("key", [None, KEY])
def test_compiled_checkpointing_redraws_the_same_mask(backend, key):
    def block(x, w):
        return dropout(torch.sin(x @ w), 0.5, key=key)

    @torch.compile(fullgraph=True, backend=backend)
    def step(x, w):
        return checkpoint(block, x, w, use_reentrant=False)

    x, w = torch.randn(20, 30, requires_grad=True), torch.randn(30, 40, requires_grad=True)
    y = step(x, w)
    scale = torch.where(y != 0, 2.0, 0.0)  # the mask that the forward drew, stored
    stored = torch.autograd.grad((torch.sin(x @ w) * scale).square().sum(), (x, w))
    found = torch.autograd.grad(y.square().sum(), (x, w))
    for ours, theirs in zip(found, stored, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_scheduled_rate_and_recompilations():
    x = torch.ones(100)
    for as_tensor, frames in ((True, 1), (False, 2)):
        torch._dynamo.reset()
        layer, counter = puredrop.nn.Dropout(0.1, key=KEY), CompileCounter()
        if as_tensor:
            layer.p = torch.tensor(0.1, dtype=torch.float64)
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for p in (0.1, 0.2, 0.3, 0.4, 0.5):
            layer.p = layer.p.fill_(p) if as_tensor else p
            assert same_bits(compiled(x), dropout(x, p, key=KEY))
        assert counter.frame_count == frames


def test_many_threads_through_one_layer():
    layer = puredrop.nn.Dropout(0.5, key=KEY)
    xs = [torch.randn(3000, requires_grad=True) for _ in range(32)]
    start = threading.Barrier(8)

    def work(x):
        if not start.broken and start.n_waiting < 8:
            start.wait(timeout=30)
        y = layer(x)
        y.square().sum().backward()
        return y.detach()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, xs))
    for x, y in zip(xs, found, strict=True):
        assert same_bits(y, dropout(x.detach(), 0.5, key=KEY))
        assert same_bits(x.grad, dropout(2 * y, 0.5, key=KEY))
    free = puredrop.nn.Dropout(0.5)
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda _: free(torch.ones(64)) != 0, range(200)))
    assert len(torch.stack(masks).unique(dim=0)) == 200  # no two calls got one key


class Dropped(torch.utils.data.Dataset):
    """A data set that augments its rows with dropout in the worker."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return dropout(torch.ones(100), 0.5, key=KEY.fold_in(i)), dropout(torch.ones(100), 0.5)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers(context):
    loader = torch.utils.data.DataLoader(Dropped(), batch_size=4, num_workers=2, multiprocessing_context=context)
    keyed, free = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert same_bits(keyed, torch.stack([dropout(torch.ones(100), 0.5, key=KEY.fold_in(i)) for i in range(12)]))
    for a, b in itertools.combinations(range(12), 2):
        assert not torch.equal(free[a], free[b])
