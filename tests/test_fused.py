"""The fused forms: each equals the composition it is named for, value by value, and keeps no more for backward."""

import math

import pytest
import torch
import torch.nn.functional as F

import puredrop.functional as P
from oracles import FLOATS, same_bits
from puredrop import Key, Window

KEY = Key(5)
FORMS = {
    "relu": (lambda x, b, r, **o: P.relu_dropout(x, 0.3, key=KEY, **o), lambda x, b, r, **o: drop(torch.relu(x), **o)),
    "gelu": (lambda x, b, r, **o: P.gelu_dropout(x, 0.3, key=KEY, **o), lambda x, b, r, **o: drop(F.gelu(x), **o)),
    "add": (lambda x, b, r, **o: P.dropout_add(x, r, 0.3, key=KEY, **o), lambda x, b, r, **o: drop(x, **o) + r),
    "bias": (
        lambda x, b, r, **o: P.bias_dropout_add(x, b, r, 0.3, key=KEY, **o),
        lambda x, b, r, **o: drop(x + b, **o) + r,
    ),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


def drop(x, **options):
    return P.dropout(x, 0.3, key=KEY, **options)


@pytest.fixture(params=list(FORMS))
def form(request):
    return FORMS[request.param]


def operands(dtype=torch.float32, layout="contiguous", shape=(6, 37, 21)):
    x, r = (LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype)) for _ in range(2))
    return [x, torch.randn(shape[-1]).to(dtype), r]


def near(found, expected, x, ulps):
    """Equal; or for GELU within some ulp of x, since torch's own value is 2.1 ulp of its input off, and ours 1.9."""
    if ulps == 0:
        return same_bits(found, expected)
    wide = torch.float64
    bound = ulps * torch.finfo(x.dtype).eps * x.to(wide).abs().clamp(min=torch.finfo(x.dtype).smallest_normal)
    return ((found.to(wide) - expected.to(wide)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_equals_the_composition_forward_and_backward(form, dtype, layout, variant):
    fused, composed = form
    ulps = 4 if fused is FORMS["gelu"][0] else 0
    ours, theirs = ([t.detach().requires_grad_() for t in operands(dtype, layout)] for _ in range(2))
    for mine, other in zip(ours, theirs, strict=True):
        mine.data.copy_(other.data)
    found, expected = fused(*ours), composed(*theirs)
    assert 0.2 < (drop(torch.ones_like(ours[0])) == 0).double().mean() < 0.4
    assert near(found, expected, theirs[0] / 0.7, ulps)
    gradient = LAYOUTS[layout](torch.randn(expected.shape).to(dtype))
    for mine, other in zip(
        torch.autograd.grad(found, ours, gradient, allow_unused=True),
        torch.autograd.grad(expected, theirs, gradient, allow_unused=True),
        strict=True,
    ):
        assert (mine is None) == (other is None)
        if mine is not None and ulps:
            assert near(mine, other, gradient / 0.7, ulps)
        elif mine is not None and mine.dim() == 3:
            assert near(mine, other, gradient, 0)
        elif mine is not None:  # the bias: a sum, in whatever order
            torch.testing.assert_close(mine, other)


def test_every_index_form(form):
    fused, composed = form
    x, b, r = operands()
    for options in (
        {"shared_dims": (1,)},
        {"shared_dims": (2,)},
        {"window": Window((60, 40, 30), (50, 3, 9))},
        {"sample_ids": torch.tensor([5, 0, 2**40, 5, 1, 7])},
    ):
        torch.testing.assert_close(fused(x, b, r, **options), composed(x, b, r, **options), rtol=0, atol=1e-6)


def test_broadcast_operands_and_mixed_dtypes_go_by_the_composition():
    x, _, r = operands()
    wide = r.double()
    assert torch.equal(P.dropout_add(x, wide, 0.3, key=KEY), drop(x) + wide)
    assert torch.equal(P.dropout_add(x, r[:1], 0.3, key=KEY), drop(x) + r[:1])
    assert torch.equal(P.dropout_add(x, r[None], 0.3, key=KEY), drop(x) + r[None])
    column = torch.randn(37, 1)
    assert torch.equal(P.bias_dropout_add(x, column, r, 0.3, key=KEY), drop(x + column) + r)
    with pytest.raises(ValueError, match=r"bias has shape \(2, 6, 37, 21\); expected one that broadcasts"):
        P.bias_dropout_add(x, x.expand(2, 6, 37, 21), r)


def test_derivatives_of_both_orders(form):
    fused, _ = form
    x, b, r = (t.double().requires_grad_() for t in operands(torch.float64, shape=(2, 3, 4)))
    call = lambda *t: fused(*t)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, b, r), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, b, r))


def test_kept_for_backward_is_what_the_activation_keeps():
    kept = []
    x, b, r = (t.requires_grad_() for t in operands())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
        activated = P.relu_dropout(x, 0.3, key=KEY)
        assert kept == [activated.data_ptr()]
        kept.clear()
        P.gelu_dropout(x, 0.3, key=KEY)
        assert kept == [x.data_ptr()]
        kept.clear()
        P.dropout_add(x, r, 0.3, key=KEY)
        P.bias_dropout_add(x, b, r, 0.3, key=KEY)
        P.dropout(x, 0.3, key=KEY)
        assert kept == []


def test_gelu_is_accurate_where_torch_has_lost_its_digits(variant):
    x = torch.cat([torch.linspace(-14, 6, 200_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    ones = torch.ones((), dtype=torch.float64)  # p = 2^-65 drops nothing and scales by 1
    found = P.gelu_dropout(x, ones * 2.0**-65, key=KEY).double()
    exact = x.double() * 0.5 * torch.special.erfc(-x.double() * math.sqrt(0.5))
    ulp = torch.nextafter(exact.float().abs(), torch.tensor(math.inf)).double() - exact.float().abs().double()
    assert ((found - exact).abs() / ulp).max() < 8
    assert ((F.gelu(x).double() - exact).abs() / ulp).max() > 1000


def test_tanh_gelu_and_bad_approximations():
    x = torch.randn(100)
    assert torch.equal(P.gelu_dropout(x, 0.3, approximate="tanh", key=KEY), drop(F.gelu(x, approximate="tanh")))
    with pytest.raises(ValueError, match="approximate is 'erf'; expected 'none' or 'tanh'"):
        P.gelu_dropout(x, approximate="erf")


def test_eval_and_the_rates_at_the_ends(form):
    x, b, r = operands()
    names = {FORMS["relu"]: torch.relu(x), FORMS["gelu"]: F.gelu(x), FORMS["add"]: x + r, FORMS["bias"]: x + b + r}
    calls = {
        FORMS["relu"]: lambda **o: P.relu_dropout(x, **o),
        FORMS["gelu"]: lambda **o: P.gelu_dropout(x, **o),
        FORMS["add"]: lambda **o: P.dropout_add(x, r, **o),
        FORMS["bias"]: lambda **o: P.bias_dropout_add(x, b, r, **o),
    }
    for o in ({"training": False}, {"p": 0.0}):
        assert torch.equal(calls[form](**o), names[form])
    assert torch.equal(calls[form](p=1.0), r if form in (FORMS["add"], FORMS["bias"]) else torch.zeros_like(x))
    with pytest.raises(ValueError, match="dropout probability"):
        calls[form](p=1.5, training=False)


def test_relu_in_place():
    x = torch.randn(50)
    expected = P.relu_dropout(x.clone(), 0.3, key=KEY)
    y = x.clone()
    assert P.relu_dropout(y, 0.3, inplace=True, key=KEY) is y
    assert torch.equal(y, expected)
    leaf = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        P.relu_dropout(leaf, 0.3, inplace=True, key=KEY)
    assert torch.equal(leaf, x)
    for view in (lambda t: t * 1, lambda t: (t * 1).view(5, 10)):
        hidden = view(leaf)
        out = P.relu_dropout(hidden, 0.3, inplace=True, key=KEY)
        assert out is hidden
        (found,) = torch.autograd.grad(out.sum(), leaf)
        (wanted,) = torch.autograd.grad(P.relu_dropout(view(leaf), 0.3, key=KEY).sum(), leaf)
        assert torch.equal(found, wanted)


def test_compiled_and_transformed_equal_eager(form):
    fused, _ = form
    tensors = operands(shape=(3, 4, 5))
    eager = fused(*tensors)
    compiled = torch.compile(lambda *t: fused(*t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), eager, rtol=0, atol=1e-6)
    mapped = torch.func.jvp(lambda x: fused(x, *tensors[1:]), (tensors[0],), (torch.ones_like(tensors[0]),))[0]
    torch.testing.assert_close(mapped, eager, rtol=0, atol=1e-6)


def test_ids_that_change_before_backward_are_noticed(form):
    fused, _ = form
    x, b, r = (t.requires_grad_() for t in operands())
    ids = torch.arange(6)
    output = fused(x, b, r, sample_ids=ids)
    ids += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_negative_zero_stays_one_where_it_stays_with_torch(dtype, variant):
    x = torch.tensor([-0.0, 0.0], dtype=dtype).repeat(100)
    for fused, activation in ((P.relu_dropout, F.relu), (P.gelu_dropout, F.gelu)):
        assert same_bits(fused(x, 0.5, key=KEY), P.dropout(activation(x), 0.5, key=KEY))
