"""PyTorch's own sample inputs for its dropout operators, run on ours."""

import warnings

import pytest
import torch

import puredrop
from oracles import same_bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

INFOS = {op.name.rpartition(".")[2]: op for op in op_db if op.name.startswith("nn.functional.dropout")}
pytestmark = pytest.mark.filterwarnings("ignore:dropout:UserWarning", "ignore::DeprecationWarning")


def test_torch_has_samples_for_what_we_have():
    assert set(INFOS) == {"dropout", "dropout2d", "dropout3d"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(INFOS))
def test_samples(name, dtype):
    function, count = getattr(puredrop.functional, name), 0
    for sample in INFOS[name].sample_inputs("cpu", dtype, requires_grad=True):
        if sample.kwargs.get("inplace"):
            sample.input = sample.input * 1
        before = sample.input.detach().clone()
        theirs = INFOS[name].op(sample.input.clone(), *sample.args, **sample.kwargs)
        ours = function(sample.input, *sample.args, **sample.kwargs)
        for attribute in ("shape", "dtype", "device", "requires_grad"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert ours.stride() == theirs.stride()
        p, training = sample.kwargs.get("p", 0.5), sample.kwargs.get("training", True)
        scale = 1 / (1 - p) if training and p < 1 else 1.0
        kept = (before.float() * scale).to(dtype) if dtype != torch.float64 else before * scale
        y = ours.detach()
        torch.testing.assert_close(y, torch.where(y == 0, 0, kept), rtol=1e-6 if dtype.itemsize > 2 else 1e-2, atol=0)
        if not training or p == 0:
            assert same_bits(y, before)
        ours.sum().backward()
        count += 1
    assert count >= 3


def test_torch_has_no_error_inputs_for_dropout():
    # When it does, run them on ours here; until then tests/test_torch_surface.py holds the errors.
    assert [name for name, info in INFOS.items() if info.error_inputs_func] == []
