"""The operator under everything that runs operators: eager, compilers, autograd, fake tensors."""

import pytest
import torch
import torch._inductor.config
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import puredrop
from oracles import FLOATS, same_bits
from puredrop import Key, Window
from puredrop.functional import dropout, keep_mask

KEY = Key(42)
FORMS = {
    "plain": {},
    "shared": {"shared_dims": (-1,)},
    "window": {"window": Window((9, 8, 7), (2, 1, 1))},
    "ids": {"sample_ids": torch.tensor([9, 0, 2**40])},
    "ids inside": {"sample_ids": torch.tensor([3, 7, 3, 0]), "sample_dim": 1, "window": Window((3, 8, 5), (0, 0, 0))},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(params=list(FORMS))
def form(request):
    return FORMS[request.param]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # read by torch 2.15 as it copies a tensor
def test_opcheck(form):
    place = puredrop.ops.place_of((3, 4, 5), **form)
    arguments = [list(place.shared_dims), place.window_shape, place.window_offset, place.sample_ids, place.sample_dim]
    p = torch.tensor(0.3, dtype=torch.float64)
    for input in (
        torch.randn(3, 4, 5, requires_grad=True),
        torch.randn(5, 4, 3, dtype=torch.bfloat16).permute(2, 1, 0),
        torch.randn(3, 1, 5).expand(3, 4, 5),
    ):
        torch.library.opcheck(torch.ops.puredrop.dropout.default, (input, KEY.tensor(), p, *arguments))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compiled_equals_eager_bit_for_bit_forward_and_backward(form, backend):
    def step(x, w):
        return dropout(torch.relu(x), 0.3, key=KEY, **form) * w

    x, w = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 5)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    expected, found = step(x, w), compiled(x, w)
    assert same_bits(found, expected)
    assert 0 < expected.count_nonzero() < (torch.relu(x) * w).count_nonzero()
    gradient, compiled_gradient = (torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, found))
    assert same_bits(compiled_gradient, gradient)


@torch._inductor.config.patch(fallback_random=True)
def test_a_compiled_call_without_key_equals_eager_under_fallback_random():
    compiled = torch.compile(lambda x: dropout(dropout(x, 0.5), 0.2), fullgraph=True)
    x = torch.randn(64, 64)
    torch.manual_seed(5)
    found = compiled(x)
    torch.manual_seed(5)
    assert same_bits(found, dropout(dropout(x, 0.5), 0.2))


def test_a_compiled_call_without_key_draws_new_keys_of_64_bits():
    compiled = torch.compile(lambda x: (dropout(x, 0.5), puredrop.rng.draw_key(x.device)), fullgraph=True)
    x = torch.ones(4096)
    masks, keys = zip(*(compiled(x) for _ in range(40)), strict=True)
    assert len({mask.sum().item() for mask in masks}) > 5
    high = {key.item() >> 32 for key in keys}
    low = {key.item() & 0xFFFFFFFF for key in keys}
    assert len(high) == len(low) == 40
    assert min(high) < 0 < max(high)


def test_a_rate_or_a_key_given_as_tensor_costs_no_recompilation():
    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def step(x, p, key):
        return dropout(x, p, key=key)

    x = torch.ones(1000)
    kept = []
    for p in (0.1, 0.5, 0.9):
        for seed in (1, 2):
            y = step(x, torch.tensor(p), Key(seed).tensor())
            assert same_bits(y, dropout(x, torch.tensor(p), key=Key(seed)))
            kept.append(y.count_nonzero().item())
    assert counter.frame_count == 1
    assert kept == sorted(kept, reverse=True) or kept[0] > kept[2] > kept[4]


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_nothing_of_the_inputs_size_is_kept_for_backward(p):
    kept = []
    x = torch.randn(1000, 100, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        y = dropout(x * 1, p)
    assert sum(kept) <= 8 + 8 + 8  # key, rate; and the constant of the product before
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        torch.nn.functional.dropout(x * 1, p)
    assert sum(kept) >= x.numel()  # the hook does see what torch keeps
    assert y.requires_grad


def test_backward_is_the_same_operator_on_the_gradient(form):
    x, g = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 5)
    gradient = torch.autograd.grad(dropout(x, 0.4, key=KEY, **form), x, g)[0]
    assert same_bits(gradient, dropout(g, 0.4, key=KEY, **form))


def test_derivatives_of_every_order_and_mode(form):
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def call(x):
        return dropout(x.sin(), 0.4, key=KEY, **form)

    assert torch.autograd.gradcheck(call, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("how", ["function", "operator"])
def test_forward_mode_never_gives_a_silent_zero_tangent(how):
    x, t = torch.randn(50), torch.randn(50)
    p = torch.tensor(0.5, dtype=torch.float64)

    def call(x):
        if how == "function":
            return dropout(x, p, key=KEY)
        return torch.ops.puredrop.dropout(x, KEY.tensor(), p, [], None, None, None, 0)

    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(call(torch.autograd.forward_ad.make_dual(x, t))).tangent
    assert same_bits(tangent, dropout(t, p, key=KEY))


def test_vmap_and_torch_func_agree_with_a_loop_for_an_explicit_key():
    xs = torch.randn(5, 20)

    def call(x):
        return dropout(x, 0.5, key=KEY)

    assert same_bits(torch.func.vmap(call)(xs), torch.stack([call(x) for x in xs]))
    assert same_bits(torch.func.vmap(call, in_dims=1)(xs), torch.stack([call(x) for x in xs.T]))
    gradient = torch.func.vmap(torch.func.grad(lambda x: call(x).square().sum()))(xs)
    assert torch.equal(gradient, torch.stack([2 * call(call(x)) for x in xs]))
    tangent = torch.func.jvp(call, (xs[0],), (xs[1],))[1]
    assert same_bits(tangent, call(xs[1]))


def test_vmap_over_keys_rates_and_ids_and_in_every_index_form(form):
    xs = torch.randn(2, 3, 4, 5)
    keys, rates = torch.tensor([3, 4]), torch.tensor([0.2, 0.7])
    together = torch.func.vmap(lambda x, key, p: dropout(x, p, key=key, **form))(xs, keys, rates)
    assert same_bits(
        together, torch.stack([dropout(x, p, key=k, **form) for x, p, k in zip(xs, rates, keys, strict=True)])
    )
    shared = torch.func.vmap(lambda x: dropout(x, 0.5, key=KEY, **form))(xs)
    assert same_bits(shared, torch.stack([dropout(x, 0.5, key=KEY, **form) for x in xs]))
    ids = torch.tensor([[0, 1, 2], [7, 5, 6]])
    mapped = torch.func.vmap(lambda x, i: dropout(x, 0.5, key=KEY, sample_ids=i))(xs, ids)
    assert same_bits(
        mapped, torch.stack([dropout(x, 0.5, key=KEY, sample_ids=i) for x, i in zip(xs, ids, strict=True)])
    )


def test_fake_and_meta_tensors_give_the_metadata_of_the_real_result():
    for input in (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(()), torch.randn(0, 3)):
        real = torch.ops.puredrop.dropout(input, KEY.tensor(), torch.tensor(0.5), [], None, None, None, 0)
        with FakeTensorMode() as mode:
            fake = dropout(mode.from_tensor(input), 0.5, key=KEY)
        meta = dropout(input.to("meta"), 0.5, key=KEY.tensor())
        for other in (fake, meta):
            assert (other.shape, other.stride(), other.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_autocast_leaves_the_dtype_alone(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dropout(torch.ones(9, dtype=dtype), 0.5).dtype == dtype
        y = dropout(torch.nn.functional.linear(torch.ones(2, 9), torch.ones(3, 9)), 0.5, key=KEY)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("key", [None, KEY])
def test_activation_checkpointing_draws_the_same_mask_again(reentrant, key):
    masks = []

    def block(x):
        y = dropout(x, 0.5, key=key)
        masks.append(y.detach() != 0)
        return y.sin()

    x = torch.randn(200, requires_grad=True)
    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    assert len(masks) == 2
    assert torch.equal(*masks)
    expected = torch.where(masks[0], 2 * (2 * x).cos(), 0)
    torch.testing.assert_close(x.grad, expected)


def test_keep_mask_under_compile():
    compiled = torch.compile(lambda key: keep_mask((4, 50), 0.3, key), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(KEY.tensor()), keep_mask((4, 50), 0.3, KEY))
