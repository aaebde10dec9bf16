"""Tests that every dropout layer should pass, as a class to inherit, and an assertion for your own models."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from puredrop.linting import CODES, check
from puredrop.nn.keyed import HasKey
from puredrop.rng import Key

__all__ = ["LayerConformance", "assert_dropout_ok"]


def __dir__() -> list[str]:
    return sorted(__all__)


def assert_dropout_ok(model: Module, *args: Any, ignore: Iterable[str] = (), **kwargs: Any) -> None:
    """Assert that a model has dropout, and that `puredrop.check` finds no mistake in it.

    Use it in a test of your model, so that a later change of the code cannot leave dropout on in eval mode unseen.

    Args:
        model: any module.
        args, kwargs: inputs of the model, in any form that `puredrop.sites` takes.
        ignore: codes of findings that are intended, such as ("PD404",).

    Raises:
        AssertionError: if there are findings, which the message lists, or if the model has no dropout.
        ValueError: if a code in `ignore` does not exist.

    >>> assert_dropout_ok(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)), torch.ones(1, 2))
    """
    ignored = set(ignore)
    if unknown := ignored - set(CODES):
        raise ValueError(f"ignore has {sorted(unknown)}; expected codes among {list(CODES)}")
    report = check(model, *args, **kwargs)
    report = replace(report, findings=tuple(finding for finding in report if finding.code not in ignored))
    if not report.ok:
        raise AssertionError(str(report))


def _refuses(make: Callable[[], object], kinds: tuple[type[Exception], ...], word: str) -> None:
    """Assert that a call raises an error of the given kinds whose message holds a word."""
    text = None
    try:
        make()
    except kinds as error:
        text = str(error)
    assert text is not None, f"nothing was raised; expected one of {[kind.__name__ for kind in kinds]}"
    assert word in text, f"the error does not name {word!r}: {text}"


class LayerConformance:
    """Tests that every layer of this library passes, for dropout layers of your own.

    Inherit the class, override `make`, and let pytest collect it; the tests themselves need no framework. Override
    `example`, `without`, `expected`, `dropped` and the attributes below where your layer differs from plain dropout.
    The statistical tests use fixed keys, so that a layer passes always or never; a right layer with 24
    elements fails by chance with probability 2e-7 or less.

    >>> class TestMine(LayerConformance):
    ...     def make(self, p, key=None):
    ...         import puredrop
    ...
    ...         return puredrop.nn.Dropout(p, key=key)
    >>> TestMine().test_eval_is_the_layer_without_dropout()
    """

    p: float = 0.3
    """Rate of most tests."""
    decisions: int = 24
    """Number of independent decisions in a forward on the example."""
    draws: int = 1500
    """Number of keys over which expectation and rate are measured."""
    nested: bool = True
    """True if everything dropped at one rate is dropped at every larger rate, under the same key."""
    differentiable: bool = True
    """True if gradients flow to the first input."""
    zeroes: bool = True
    """True if p = 1 gives zeros."""
    fullgraph: bool = True
    """True if the layer compiles without a break of the graph."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    """Dtypes that the layer supports."""
    tolerance: float = 1e-6
    """Allowed relative error of values in float32."""

    _drawn: ClassVar[Tensor | None] = None

    def make(self, p: float | Tensor, key: Key | None = None) -> Module:
        """Return the layer under test."""
        raise NotImplementedError("override make(p, key)")

    def example(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Return the layer's inputs; values are not near 0, so that a zero in the output is a drop."""
        generator = torch.Generator().manual_seed(1)
        return ((torch.rand(4, 6, generator=generator, dtype=torch.float64) + 0.5).to(dtype),)

    def without(self, layer: Module, *inputs: Tensor) -> Tensor:
        """Return the layer's output without dropout."""
        return inputs[0]

    def expected(self, layer: Module, *inputs: Tensor) -> Tensor | None:
        """Return the expectation of the layer's output; None if another test checks it."""
        return self.without(layer, *inputs)

    def dropped(self, output: Tensor, *inputs: Tensor) -> Tensor | None:
        """Return the share of dropped decisions in an output; None if the output does not show it."""
        return (output == 0).double().mean()

    def output(self, layer: Module, *inputs: Tensor) -> Tensor:
        """Return the output tensor that the tests check."""
        output: Tensor = layer(*inputs)
        return output

    def test_eval_is_the_layer_without_dropout(self) -> None:
        """Check that eval mode gives the layer without dropout."""
        inputs = self.example()
        for key in (None, Key(1)):
            layer = self.make(self.p, key).eval()
            torch.testing.assert_close(self.output(layer, *inputs), self.without(layer, *inputs), rtol=0, atol=0)

    def test_the_expectation_is_as_stated(self) -> None:
        """Check that outputs averaged over keys equal `expected` within 6 standard errors, by element and in total."""
        inputs = self.example(torch.float64)
        layer = self.make(self.p).to(torch.float64)
        expected = self.expected(layer, *inputs)
        if expected is None:
            return
        outputs = self._outputs()
        error = (outputs.mean(0) - expected).abs()
        bound = 6 * outputs.std(0) / math.sqrt(self.draws) + 1e-12
        assert bool((error <= bound).all()), f"largest error {error.max():.3g}, allowed {bound.max():.3g}"
        # The average over elements varies less than any of them, so a small error of the scale shows there.
        averages = outputs.flatten(1).mean(1)
        total, allowed = (averages.mean() - expected.mean()).abs(), 6 * averages.std() / math.sqrt(self.draws) + 1e-12
        assert bool(total <= allowed), f"the average is {total:.3g} off, allowed {allowed:.3g}"

    def test_the_realised_rate_is_p(self) -> None:
        """Check the dropped share over keys to 6 standard errors of independent decisions."""
        inputs = self.example(torch.float64)
        layer = self.make(self.p).to(torch.float64)
        if self.dropped(self.output(layer, *inputs), *inputs) is None:
            return
        shares = [self.dropped(output, *inputs) for output in self._outputs()]
        mean = torch.stack([share for share in shares if share is not None]).mean().item()
        bound = 6 * math.sqrt(self.p * (1 - self.p) / (self.draws * self.decisions))
        assert abs(mean - self.p) <= bound, f"drops {mean:.4f}, expected {self.p} to {bound:.4f}"

    def test_a_mask_is_a_function_of_its_key(self) -> None:
        """Check that one key gives one output, whatever is drawn in between, and another key another output."""
        inputs = self.example()
        layer = self.make(self.p, Key(5))
        first = self.output(layer, *inputs)
        torch.rand(7)
        assert torch.equal(first, self.output(layer, *inputs))
        others = [self._under(layer, Key(k), *inputs) for k in range(6, 26)]
        assert any(other.shape != first.shape or not torch.equal(first, other) for other in others)

    def test_a_seed_brings_masks_back(self) -> None:
        """Check that masks without a key come from torch's generator and that manual_seed repeats them."""
        inputs, layer = self.example(), self.make(self.p)

        def draw() -> list[Tensor]:
            torch.manual_seed(3)
            return [self.output(layer, *inputs) for _ in range(20)]

        first, second = draw(), draw()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert any(a.shape != first[0].shape or not torch.equal(a, first[0]) for a in first)

    def test_masks_are_nested(self) -> None:
        """Check that everything dropped at one rate is dropped at every larger rate."""
        if not self.nested:
            return
        inputs = self.example()
        for k in range(20):
            zero = [self.output(self.make(p, Key(k)), *inputs) == 0 for p in (0.1, 0.3, 0.6, 0.9)]
            assert all(bool((small <= large).all()) for small, large in itertools.pairwise(zero))

    def test_rates_of_0_and_1(self) -> None:
        """Check that rate 0 changes nothing and that rate 1 drops all, forward and backward, without NaN."""
        inputs = self._differentiable(self.example())
        layer = self.make(0.0, Key(1))
        torch.testing.assert_close(
            self.output(layer, *inputs), self.without(layer, *inputs), rtol=self.tolerance, atol=self.tolerance
        )
        if not self.zeroes:
            return
        output = self.output(self.make(1.0, Key(1)), *inputs)
        assert not output.any()
        if self.differentiable:
            output.sum().backward()
            assert not inputs[0].grad.any()  # type: ignore[union-attr]

    def test_a_bad_rate_is_named(self) -> None:
        """Check that the constructor refuses rates outside [0, 1], NaN, text, and keys that are not keys."""
        for bad in (-0.1, 1.1, math.nan):
            _refuses(lambda bad=bad: self.make(bad), (ValueError,), "probability")  # type: ignore[misc]
        _refuses(lambda: self.make("half"), (TypeError,), "p is")  # type: ignore[arg-type]
        _refuses(lambda: self.make(0.5, 3), (TypeError,), "key is 3")  # type: ignore[arg-type]

    def test_dtypes(self) -> None:
        """Check that every dtype keeps its dtype and has the mask of float32."""
        wide = self.output(self.make(self.p, Key(2)), *self.example())
        for dtype in self.dtypes:
            layer = self.make(self.p, Key(2))
            layer = layer.to(dtype)
            output = self.output(layer, *self.example(dtype))
            assert output.dtype == dtype
            torch.testing.assert_close(output.float(), wide, rtol=0.05, atol=0.05)

    def test_gradients(self) -> None:
        """Check first derivatives against finite differences, in float64."""
        if not self.differentiable:
            return
        layer = self.make(self.p, Key(4)).to(torch.float64)
        inputs = self._differentiable(self.example(torch.float64))
        assert torch.autograd.gradcheck(lambda *args: self.output(layer, *args), inputs)

    def test_compiled_equals_eager(self) -> None:
        """Check that compiled code gives the same output under the same key."""
        inputs, layer = self.example(), self.make(self.p, Key(4))
        torch.compiler.reset()
        compiled: Any = torch.compile(
            lambda *args: self.output(layer, *args), fullgraph=self.fullgraph, backend="aot_eager"
        )
        # A broken graph makes torch warn about gradients that nobody asked for.
        with torch.set_grad_enabled(self.fullgraph):
            torch.testing.assert_close(compiled(*inputs), self.output(layer, *inputs), rtol=self.tolerance, atol=1e-6)

    def test_vmap_is_a_loop(self) -> None:
        """Check that vmap over a stack of inputs, with one key, gives each input its own output."""
        inputs, layer = self.example(), self.make(self.p, Key(4))
        stack = tuple(torch.stack([value, value.flip(0)]) for value in inputs)
        mapped = torch.func.vmap(lambda *args: self.output(layer, *args))(*stack)
        for i in range(2):
            alone = self.output(layer, *(values[i] for values in stack))
            torch.testing.assert_close(mapped[i], alone, rtol=self.tolerance, atol=1e-6)

    def test_checkpointing_draws_the_mask_again(self) -> None:
        """Check that gradients with activation checkpointing equal those without, for keys from one seed."""
        if not self.differentiable:
            return
        layer, gradients = self.make(self.p), []
        for wrapped in (False, True):
            inputs = self._differentiable(self.example())
            torch.manual_seed(11)
            call = lambda *args: self.output(layer, *args)  # noqa: E731
            output = checkpoint(call, *inputs, use_reentrant=False) if wrapped else call(*inputs)
            output.square().sum().backward()
            gradients.append(inputs[0].grad)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)

    def test_repr_says_rate_and_key(self) -> None:
        """Check that the repr shows the rate, and the key if there is one."""
        text = repr(self.make(0.25, Key(7)))
        assert "0.25" in text
        assert "Key(7)" in text
        assert "key" not in repr(self.make(0.25))

    def test_state_dict_and_copies(self) -> None:
        """Check that a loaded state_dict and a deep copy drop the same."""
        inputs, layer = self.example(), self.make(self.p, Key(7))
        output = self.output(layer, *inputs)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = self.make(self.p, Key(7))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(self.output(other, *inputs), output)
        assert torch.equal(self.output(copy.deepcopy(layer), *inputs), output)

    def _outputs(self) -> Tensor:
        """Return the outputs under `draws` keys, (draws, ...), in float64; drawn once for the tests that read them."""
        outputs: Tensor | None = vars(type(self)).get("_drawn")
        if outputs is None:
            inputs, layer = self.example(torch.float64), self.make(self.p).to(torch.float64)
            outputs = torch.stack([self._under(layer, Key(k), *inputs) for k in range(self.draws)])
            type(self)._drawn = outputs
        return outputs

    def _under(self, layer: Module, key: Key, *inputs: Tensor) -> Tensor:
        """Return the output under a key."""
        for module in layer.modules():
            if isinstance(module, HasKey):
                module.set_key(key)
        with torch.no_grad():
            return self.output(layer, *inputs)

    def _differentiable(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.detach().requires_grad_(self.differentiable and x.is_floating_point()) for x in inputs)
