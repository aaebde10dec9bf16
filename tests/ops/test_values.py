"""Values and devices of rates, keys, ids, windows and switches: nothing uninitialised, nothing unchecked."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import puredrop
from puredrop import Key, Window, functional
from puredrop.ops._values import check_ids_in_range

KEY = Key(3)
ROWS = torch.tensor([4, 1, 5, 0, 2])
CALLS = {
    "dropout": lambda x, p=0.3, **n: functional.dropout(x, p, key=KEY, **n),
    "dropout1d": lambda x, p=0.3, **n: functional.dropout1d(x[:, :, 0], p, key=KEY, **n),
    "dropout2d": lambda x, p=0.3, **n: functional.dropout2d(x, p, key=KEY, **n),
    "dropout3d": lambda x, p=0.3, **n: functional.dropout3d(x[..., None], p, key=KEY, **n),
    "alpha_dropout": lambda x, p=0.3, training=True, **n: functional.alpha_dropout(x, p, training, key=KEY, **n),
    "feature_alpha_dropout": lambda x, p=0.3, training=True, **n: functional.feature_alpha_dropout(
        x, p, training, key=KEY, **n
    ),
    "gaussian_dropout": lambda x, p=0.3, **n: functional.gaussian_dropout(x, p, key=KEY, **n),
    "drop_path": lambda x, p=0.3, **n: functional.drop_path(x, p, key=KEY, **n),
    "drop_path unscaled": lambda x, p=0.3, **n: functional.drop_path(x, p, key=KEY, scale_by_keep=False, **n),
    "drop_block2d": lambda x, p=0.3, **n: functional.drop_block2d(x, p, 2, key=KEY, **n),
    "relu_dropout": lambda x, p=0.3, **n: functional.relu_dropout(x, p, key=KEY, **n),
    "gelu_dropout": lambda x, p=0.3, **n: functional.gelu_dropout(x, p, key=KEY, **n),
    "dropout_add": lambda x, p=0.3, **n: functional.dropout_add(x, x, p, key=KEY, **n),
    "bias_dropout_add": lambda x, p=0.3, **n: functional.bias_dropout_add(x, x[0, 0, 0], x, p, key=KEY, **n),
}
# Of two arguments: attention has no switch and its ids are those of its weights, a mask no input.
OTHERS = {
    "attention": lambda x, p=0.3: functional.scaled_dot_product_attention(x, x, x, dropout_p=p, dropout_key=KEY),
    "keep_mask": lambda x, p=0.3: functional.keep_mask(x.shape, p, KEY, device=x.device),
}
LAYERS = {
    "Dropout": (lambda: puredrop.nn.Dropout(0.3), (5, 6)),
    "Dropout2d": (lambda: puredrop.nn.Dropout2d(0.3), (5, 6, 3, 2)),
    "AlphaDropout": (lambda: puredrop.nn.AlphaDropout(0.3), (5, 6)),
    "GaussianDropout": (lambda: puredrop.nn.GaussianDropout(0.3), (5, 6)),
    "DropPath": (lambda: puredrop.nn.DropPath(0.3), (5, 6)),
    "LayerDrop": (lambda: puredrop.nn.LayerDrop(nn.Linear(6, 6), 0.3), (5, 6)),
    "DropBlock2d": (lambda: puredrop.nn.DropBlock2d(0.3, 2), (5, 6, 3, 2)),
    "LockedDropout": (lambda: puredrop.nn.LockedDropout(0.3, batch_first=True), (5, 6, 3)),
    "PatchDropout": (lambda: puredrop.nn.PatchDropout(0.3), (5, 9, 3)),
    "MultiheadAttention": (lambda: Attending(), (5, 6, 8)),
    "LSTM": (lambda: First(puredrop.nn.LSTM(6, 4, 2, dropout=0.3, batch_first=True)), (5, 7, 6)),
    "drop_connect": (lambda: puredrop.nn.drop_connect(nn.Linear(6, 4), 0.3), (5, 6)),
    "WeightDrop": (lambda: First(puredrop.nn.WeightDrop(nn.GRU(6, 4, batch_first=True), 0.3)), (5, 7, 6)),
}


class First(nn.Module):
    """The first of a module's outputs."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


class Attending(First):
    def __init__(self):
        super().__init__(puredrop.nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True))

    def forward(self, x):
        return self.module(x, x, x)[0]


@pytest.fixture
def x():
    return torch.randn(5, 4, 3, 6)


@pytest.fixture(params=["fast", "reference"])
def backend(request, use):
    """The backend that is chosen by default, and the reference."""
    if request.param == "reference":
        use(backend="reference")


def assert_same(name, a, b):
    """Compare bits; gelu's one pass differs from its composition, which a default device calls, by a few ulp."""
    tolerance = 1e-6 if name == "gelu_dropout" else 0
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
def test_the_default_device_changes_nothing(name, x, backend):
    call = {**CALLS, **OTHERS}[name]
    x.requires_grad_(name != "keep_mask")
    expected = call(x)
    with torch.device("meta"):
        y = call(x)
        if x.requires_grad:
            (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_same(name, y, expected)
    if x.requires_grad:
        assert_same(name, gradient, torch.autograd.grad(expected.sum(), x)[0])
        assert y.device.type == gradient.device.type == "cpu"


@pytest.mark.parametrize("name", ["dropout", "gaussian_dropout", "drop_block2d", "attention"])
def test_the_default_device_changes_no_compiled_code(name, x):
    call = {**CALLS, **OTHERS}[name]
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    with torch.device("meta"):
        assert torch.equal(compiled(x), call(x))


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_default_device_changes_no_pinned_model(name, ids):
    make, shape = LAYERS[name]
    model, rows, outputs = make(), torch.randn(shape), []
    for device in ("cpu", "meta"):
        with puredrop.reproducible(model, seed=1) as run, torch.device(device):
            for _ in range(2):
                if ids:
                    run.sample_ids = ROWS
                outputs.append(model(rows))
                run.advance() if hasattr(run, "advance") else None
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_without_a_value_is_refused(name, x):
    with pytest.raises(ValueError, match="p is a tensor on the meta device, which holds no value; expected one on cpu"):
        CALLS[name](x, torch.tensor(0.3, device="meta"))


def test_a_key_and_ids_without_a_value_are_refused(x):
    with pytest.raises(ValueError, match="key is a tensor on the meta device"):
        functional.dropout(x, 0.3, key=KEY.tensor("meta"))
    with pytest.raises(ValueError, match="sample_ids is a tensor on the meta device"):
        functional.dropout(x, 0.3, key=KEY, sample_ids=ROWS.to("meta"))


RATES = [1.5, -0.5, float("nan")]


@pytest.mark.parametrize("wrong", RATES)
@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
def test_wrong_rates_are_refused_in_every_form(name, wrong, x):
    call = {**CALLS, **OTHERS}[name]
    tensor = torch.tensor(wrong)
    forms = [wrong, np.float32(wrong), np.float64(wrong), tensor, nn.Parameter(tensor, requires_grad=False)]
    for p in forms:
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got"):
            call(x, p)


@pytest.mark.parametrize("wrong", RATES)
@pytest.mark.parametrize("name", ["dropout", "gaussian_dropout", "dropout_add", "alpha_dropout"])
def test_wrong_rates_are_refused_where_only_the_operator_sees_them(name, wrong, x):
    call = CALLS[name]
    with pytest.raises(ValueError, match="between 0 and 1, but got"):
        torch.func.vmap(call, randomness="different")(x, torch.tensor([0.3, wrong, 0.1, 0.2, 0.5]))
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    compiled(x, torch.tensor(0.3))
    with pytest.raises(ValueError, match="between 0 and 1, but got"):
        compiled(x, torch.tensor(wrong))


def test_infinite_noise_is_refused_in_every_form(x):
    for p in (1, 1.0, torch.tensor(1.0), nn.Parameter(torch.tensor(1.0), requires_grad=False)):
        with pytest.raises(ValueError, match="gaussian_dropout expects p below 1"):
            functional.gaussian_dropout(x, p, key=KEY)


@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
def test_numbers_of_every_type_are_one_rate(name, x, backend):
    call = {**CALLS, **OTHERS}[name]
    expected = call(x, 0.25)
    for p in (Fraction(1, 4), np.float32(0.25), np.float16(0.25), torch.tensor(0.25)):
        assert_same(name, call(x, p), expected)
        with torch.device("meta"):  # through the operator
            assert_same(name, call(x, p), expected)


@pytest.mark.parametrize("name", CALLS)
def test_training_is_true_or_false(name, x):
    for wrong in ("False", "", 1, 0, None, np.bool_(True), torch.tensor(True)):
        with pytest.raises(TypeError, match=r"training is .*; expected True or False"):
            CALLS[name](x, training=wrong)


IDS = {
    "negative": torch.tensor([4, -1, 5, 0, 2]),
    "too large": torch.tensor([4, 2**62, 5, 0, 2]),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("name", ["dropout", "gaussian_dropout", "dropout_add", "drop_block2d", "alpha_dropout"])
def test_wrong_ids_are_refused_in_every_form(name, kind, x):
    call, wrong = CALLS[name], IDS[kind]
    for ids in (wrong, nn.Parameter(wrong, requires_grad=False)):
        with pytest.raises(ValueError, match="sample_ids holds"):
            call(x, sample_ids=ids)
    with pytest.raises(ValueError, match="sample_ids holds"):
        torch.func.vmap(lambda x, ids: call(x, sample_ids=ids), randomness="different")(
            torch.stack([x, x]), torch.stack([ROWS, wrong])
        )
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, ids: call(x, sample_ids=ids), backend="aot_eager", fullgraph=True)
    compiled(x, ROWS)
    with pytest.raises(ValueError, match="sample_ids holds"):
        compiled(x, wrong)


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on a GPU, so that its values are asserted there and not read."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.mark.parametrize("kind", [*IDS, "beyond the dimension"])
def test_a_device_asserts_what_cannot_be_read(kind):
    wrong = IDS.get(kind, torch.tensor([0, 7]))
    sizes, dim = ((5, 6), 0) if kind in IDS else ((2, 6), 1)
    with pytest.raises(RuntimeError, match="sample_ids holds an id outside of its dimension"):
        check_ids_in_range(wrong.as_subclass(Elsewhere), sizes, (), dim)
    check_ids_in_range(ROWS.as_subclass(Elsewhere), sizes, (), dim)


def test_windows_take_integers_of_every_type():
    window = Window(np.array([8, 6]), (np.int64(2), np.uint8(0)))
    assert window == Window((8, 6), (2, 0))
    assert all(type(size) is int for size in (*window.shape, *window.offset))
    for wrong in ((True, 6), (np.bool_(True), 6), (8.0, 6), (torch.tensor(8), 6), ("8", 6)):
        with pytest.raises(TypeError, match=r"Window: shape is .*; expected integers, got"):
            Window(wrong, (0, 0))
    for huge in (2**63, 2**64, 2**70):
        with pytest.raises(ValueError, match=r"Window: shape is .*; expected entries below 2\^63"):
            Window((huge, 6), (0, 0))
        with pytest.raises(ValueError, match="Window: offset is"):
            Window((8, 6), (huge, 0))


def test_windows_are_checked_in_compiled_code(backend):
    x = torch.randn(5, 6)

    def call(x, window):
        return functional.dropout(x, 0.3, key=KEY, window=window)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for sizes in ((2**40, 2**30), (2**62, 6)):
        for function in (call, compiled):
            with pytest.raises(ValueError, match=r"expected a logical size below 2\^63"):
                function(x, Window(sizes, (0, 0)))


@pytest.mark.parametrize("name", ["dropout", "gaussian_dropout", "relu_dropout", "dropout_add", "alpha_dropout"])
def test_tensors_without_dimensions(name):
    call = {
        **CALLS,
        "dropout_add": lambda x, **n: functional.dropout_add(x, x, 0.3, key=KEY, **n),
    }[name]
    x = torch.randn(())
    assert call(x).shape == ()
    assert call(x, window=Window((), ())).shape == ()
    with pytest.raises(ValueError, match="sample_dim is 0; expected a dimension of the 0-dimensional input"):
        call(x, sample_ids=torch.tensor([1]))
    with pytest.raises(ValueError, match=r"sample_ids has shape \(\); expected"):
        call(torch.randn(3), sample_ids=torch.tensor(1))


COMPILED = {
    "dropout2d of 3 dimensions": (lambda x: functional.dropout2d(x, 0.5, key=KEY), (2, 3, 4)),
    "dropout2d of 2 dimensions": (lambda x: functional.dropout2d(x, 0.5, key=KEY), (2, 3)),
    "dropout3d of 3 dimensions": (lambda x: functional.dropout3d(x, 0.5, key=KEY), (2, 3, 4)),
    "drop_block2d, block beyond the map": (lambda x: functional.drop_block2d(x, 0.5, 7, key=KEY), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_warning_breaks_no_graph(name):
    call, shape = COMPILED[name]
    x = torch.randn(shape)
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match="drop") as eager:
        expected = call(x)
    assert [warning.filename for warning in eager] == [__file__]
    assert torch.equal(torch.compile(call, backend="aot_eager", fullgraph=True)(x), expected)
