"""What every dropout layer owes its users, as a class of tests to inherit; it needs no test framework."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from puredrop.linting import CODES, check
from puredrop.nn.keyed import HasKey
from puredrop.rng import Key

__all__ = ["LayerConformance", "assert_dropout_ok"]


def assert_dropout_ok(model: Module, *args: Any, ignore: Iterable[str] = (), **kwargs: Any) -> None:
    """Assert that `puredrop.check` finds nothing in a model.

    Args:
        model: any module.
        args, kwargs: what it is called with.
        ignore: codes of findings that are meant.

    Raises:
        AssertionError: with the findings.
        ValueError: for a code that is none.

    >>> assert_dropout_ok(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)), torch.ones(1, 2))
    """
    ignored = set(ignore)
    if unknown := ignored - set(CODES):
        raise ValueError(f"ignore has {sorted(unknown)}; expected codes among {list(CODES)}")
    left = [finding for finding in check(model, *args, **kwargs) if finding.code not in ignored]
    if left:
        raise AssertionError("\n".join(map(str, left)))


def _refuses(make: Callable[[], object], kinds: tuple[type[Exception], ...], word: str) -> None:
    text = None
    try:
        make()
    except kinds as error:
        text = str(error)
    assert text is not None, f"nothing was raised; expected one of {[kind.__name__ for kind in kinds]}"
    assert word in text, f"the error does not name {word!r}: {text}"


class LayerConformance:
    """The tests that every layer of this library passes; inherit it, say how to make yours, and run it with pytest.

    Override what differs: `make`, `example`, `without`, `expected`, `dropped` and the figures below.

    >>> class TestMine(LayerConformance):
    ...     def make(self, p, key=None):
    ...         import puredrop
    ...
    ...         return puredrop.nn.Dropout(p, key=key)
    >>> TestMine().test_eval_is_the_layer_without_dropout()
    """

    p: float = 0.3
    """The rate most tests use."""
    decisions: int = 24
    """How many independent decisions a forward on the example takes."""
    draws: int = 1500
    """Keys over which expectation and rate are measured."""
    nested: bool = True
    """Whether what a rate drops, every larger rate drops under the same key."""
    differentiable: bool = True
    """Whether gradients flow to the first input."""
    zeroes: bool = True
    """Whether p = 1 gives zeros."""
    fullgraph: bool = True
    """Whether it compiles without a break of the graph."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    """What it takes."""
    tolerance: float = 1e-6
    """How far a value may be from what is said of it, in float32 and relative."""

    _drawn: ClassVar[Tensor | None] = None

    def make(self, p: float | Tensor, key: Key | None = None) -> Module:
        """The layer under test."""
        raise NotImplementedError("override make(p, key)")

    def example(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """What it is called with: values away from 0, so that a zero in the output is a drop."""
        generator = torch.Generator().manual_seed(1)
        return ((torch.rand(4, 6, generator=generator, dtype=torch.float64) + 0.5).to(dtype),)

    def without(self, layer: Module, *inputs: Tensor) -> Tensor:
        """The layer's output without dropout."""
        return inputs[0]

    def expected(self, layer: Module, *inputs: Tensor) -> Tensor | None:
        """The expectation of its output; None where it is stated in a test of its own."""
        return self.without(layer, *inputs)

    def dropped(self, output: Tensor, *inputs: Tensor) -> Tensor | None:
        """The share of decisions that dropped, in an output; None where the output does not show it."""
        return (output == 0).double().mean()

    def output(self, layer: Module, *inputs: Tensor) -> Tensor:
        """The tensor that tests look at."""
        found: Tensor = layer(*inputs)
        return found

    def test_eval_is_the_layer_without_dropout(self) -> None:
        """In eval mode nothing is dropped and nothing is copied that need not be."""
        inputs = self.example()
        for key in (None, Key(1)):
            layer = self.make(self.p, key).eval()
            torch.testing.assert_close(self.output(layer, *inputs), self.without(layer, *inputs), rtol=0, atol=0)

    def test_the_expectation_is_as_stated(self) -> None:
        """Each element's mean over keys, and the average of all, within 6 standard errors; 1 in 5e8 by chance."""
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
        """The share dropped over keys within 6 standard errors of independent decisions."""
        inputs = self.example(torch.float64)
        layer = self.make(self.p).to(torch.float64)
        if self.dropped(self.output(layer, *inputs), *inputs) is None:
            return
        shares = [self.dropped(output, *inputs) for output in self._outputs()]
        mean = torch.stack([share for share in shares if share is not None]).mean().item()
        bound = 6 * math.sqrt(self.p * (1 - self.p) / (self.draws * self.decisions))
        assert abs(mean - self.p) <= bound, f"drops {mean:.4f}, expected {self.p} to {bound:.4f}"

    def test_a_mask_is_a_function_of_its_key(self) -> None:
        """The same key, the same output, whatever was drawn in between; another key another one."""
        inputs = self.example()
        layer = self.make(self.p, Key(5))
        first = self.output(layer, *inputs)
        torch.rand(7)
        assert torch.equal(first, self.output(layer, *inputs))
        others = [self._under(layer, Key(k), *inputs) for k in range(6, 26)]
        assert any(other.shape != first.shape or not torch.equal(first, other) for other in others)

    def test_a_seed_brings_masks_back(self) -> None:
        """Without a key, masks come from torch's generator: drawn anew, and repeated by manual_seed."""
        inputs, layer = self.example(), self.make(self.p)

        def several() -> list[Tensor]:
            torch.manual_seed(3)
            return [self.output(layer, *inputs) for _ in range(20)]

        first, second = several(), several()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert any(a.shape != first[0].shape or not torch.equal(a, first[0]) for a in first)

    def test_masks_are_nested(self) -> None:
        """What a rate drops, every larger rate drops too."""
        if not self.nested:
            return
        inputs = self.example()
        for k in range(20):
            zero = [self.output(self.make(p, Key(k)), *inputs) == 0 for p in (0.1, 0.3, 0.6, 0.9)]
            assert all(bool((small <= large).all()) for small, large in itertools.pairwise(zero))

    def test_rates_of_0_and_1(self) -> None:
        """Rate 0 is the layer without dropout; rate 1 drops all, forward and backward, without NaN."""
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
        """Rates outside [0, 1], NaN and text are refused where the layer is made, and so are keys that are none."""
        for bad in (-0.1, 1.1, math.nan):
            _refuses(lambda bad=bad: self.make(bad), (ValueError,), "probability")  # type: ignore[misc]
        _refuses(lambda: self.make("half"), (TypeError,), "p is")  # type: ignore[arg-type]
        _refuses(lambda: self.make(0.5, 3), (TypeError,), "key is 3")  # type: ignore[arg-type]

    def test_dtypes(self) -> None:
        """Every dtype gives its own back, with the mask of float32."""
        wide = self.output(self.make(self.p, Key(2)), *self.example())
        for dtype in self.dtypes:
            layer = self.make(self.p, Key(2))
            layer = layer.to(dtype)
            output = self.output(layer, *self.example(dtype))
            assert output.dtype == dtype
            torch.testing.assert_close(output.float(), wide, rtol=0.05, atol=0.05)

    def test_gradients(self) -> None:
        """First derivatives against differences, in float64."""
        if not self.differentiable:
            return
        layer = self.make(self.p, Key(4)).to(torch.float64)
        inputs = self._differentiable(self.example(torch.float64))
        assert torch.autograd.gradcheck(lambda *args: self.output(layer, *args), inputs)

    def test_compiled_equals_eager(self) -> None:
        """The same output from compiled code, under the same key."""
        inputs, layer = self.example(), self.make(self.p, Key(4))
        torch._dynamo.reset()
        compiled: Any = torch.compile(
            lambda *args: self.output(layer, *args), fullgraph=self.fullgraph, backend="aot_eager"
        )
        with torch.set_grad_enabled(
            self.fullgraph
        ):  # broken graphs make torch warn about gradients that nobody asked for
            torch.testing.assert_close(compiled(*inputs), self.output(layer, *inputs), rtol=self.tolerance, atol=1e-6)

    def test_vmap_is_a_loop(self) -> None:
        """Mapped over a stack of inputs, one key gives each what it gives alone."""
        inputs, layer = self.example(), self.make(self.p, Key(4))
        stack = tuple(torch.stack([one, one.flip(0)]) for one in inputs)
        mapped = torch.func.vmap(lambda *args: self.output(layer, *args))(*stack)
        for i in range(2):
            alone = self.output(layer, *(one[i] for one in stack))
            torch.testing.assert_close(mapped[i], alone, rtol=self.tolerance, atol=1e-6)

    def test_checkpointing_draws_the_mask_again(self) -> None:
        """Gradients with activation checkpointing equal those without, with fresh keys from one seed."""
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
        """What a person needs to see."""
        text = repr(self.make(0.25, Key(7)))
        assert "0.25" in text
        assert "Key(7)" in text
        assert "key" not in repr(self.make(0.25))

    def test_state_dict_and_copies(self) -> None:
        """A state_dict loads by weights_only, a deep copy and a layer saved whole drop the same."""
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
        """The output under a key."""
        for module in layer.modules():
            if isinstance(module, HasKey):
                module.set_key(key)
        with torch.no_grad():
            return self.output(layer, *inputs)

    def _differentiable(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one.detach().requires_grad_(self.differentiable and one.is_floating_point()) for one in inputs)
