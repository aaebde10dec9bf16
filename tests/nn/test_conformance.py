"""The conformance suite finds what is wrong with a layer."""

import itertools

import pytest
import torch
from test_layers import TestDropout as Conforming

import puredrop

CALLS = itertools.count(1)


class Wrong(puredrop.nn.Dropout):
    """Dropout whose output a function spoils."""

    spoil = staticmethod(lambda x, y: y)

    def forward(self, x):
        return self.spoil(x, super().forward(x))


def suite(spoil):
    """The conformance suite of `Dropout`, on a layer that is spoiled."""

    class Spoiled(Conforming):
        def make(self, p, key=None):
            layer = Wrong(p, key=key)
            layer.spoil = spoil
            return layer

    return Spoiled()


@pytest.mark.parametrize(
    ("test", "spoil"),
    [
        ("test_eval_is_the_layer_without_dropout", lambda x, y: y * 2),
        ("test_the_expectation_is_as_stated", lambda x, y: y * 1.05),
        ("test_the_expectation_is_as_stated", lambda x, y: y + 0.05),
        ("test_the_realised_rate_is_p", lambda x, y: y * (x < 1.45)),
        ("test_a_mask_is_a_function_of_its_key", lambda x, y: y + torch.rand(())),
        ("test_a_mask_is_a_function_of_its_key", lambda x, y: x),
        ("test_a_seed_brings_masks_back", lambda x, y: x),
        ("test_rates_of_0_and_1", lambda x, y: y + 1e-3),
        ("test_dtypes", lambda x, y: y.float()),
        ("test_gradients", lambda x, y: y.detach() + 0 * x),
        ("test_compiled_equals_eager", lambda x, y: y + torch.compiler.is_compiling()),
        ("test_checkpointing_draws_the_mask_again", lambda x, y: y * next(CALLS)),
    ],
)
def test_a_spoiled_layer_fails(test, spoil):
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(suite(spoil), test)()
