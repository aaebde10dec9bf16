"""Attack: the compiled kernel and the reference answer random calls alike."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attacks.arguments import FLOATS
from attacks.calls import Call, any_call
from attacks.outcome import Choices, Outcome
from puredrop import _backend

__all__ = ["PROMISE", "attack", "variants"]

PROMISE = "kernel and reference give the same bits, the same gradients, or refuse with the same error"
_BATCH = 250
_ERRORS = ("TypeError", "ValueError", "RuntimeError", "NotImplementedError", "IndexError", "OverflowError")
"""Errors that a wrong argument may raise; any other is a fault of ours."""
_VARIABLES = ("PUREDROP_BACKEND", "PUREDROP_ISA")


@dataclass
class Answer:
    """What one backend made of a call.

    Args:
        text: the call.
        tolerance: as that of the call.
        error: name of the error's class, or "".
        facts: what must be equal: shapes, dtypes, strides, aliases, the state of torch's generator.
        tensors: results and gradients.
        message: the error's text.
        scale: as that of the call.
    """

    text: str
    tolerance: float
    error: str = ""
    facts: tuple[Any, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    message: str = ""
    scale: float = 0.0


class _Dispatched(TorchFunctionMode):
    """Send calls through torch's dispatcher to the operator, as transforms do, instead of straight to the kernel."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return function(*arguments, **(named or {}))


def attack(cases: int, seed: int, first: int = 0) -> Outcome:
    """Run calls on the kernel and on the reference, in batches, each on another of the machine's instruction sets."""
    outcome, counts = Outcome(PROMISE), Counter[str]()
    present = variants()
    with _poisoned(), _environment():
        for start in range(first, first + cases, _BATCH):
            numbers = range(start, min(start + _BATCH, first + cases))
            isa = present[start // _BATCH % len(present)] if present else ""
            torch.set_num_threads(1 + start // _BATCH % 2)
            _use("reference", "")
            expected = [answer(seed, number) for number in numbers]
            _use("cpu" if present else "reference", isa)
            for number, reference in zip(numbers, expected, strict=True):
                with _Dispatched() if number % 4 == 3 else nullcontext():
                    found = answer(seed, number)
                difference = compare(found, reference)
                outcome.cases += 1
                counts["refused" if reference.error else "valid"] += 1
                if difference:
                    outcome.failures[number] = f"{difference} [{isa}]: {reference.text}"
    outcome.detail = f"{counts['valid']} valid, {counts['refused']} refused; {', '.join(present) or 'no kernel'}"
    return outcome


def answer(seed: int, number: int) -> Answer:
    """Make the call of a case, and its gradients, with the backend in use."""
    call = any_call(Choices("kernel", seed, number))
    # torch.manual_seed asks every kind of device, which takes longer than a call.
    torch.default_generator.manual_seed(number)
    try:
        tensors = [part for part in _parts(call.run()) if part is not None]
        facts = tuple(_facts(tensor, call) for tensor in tensors)
        gradients = _gradients(tensors[0], call, number)
    except Exception as error:
        return Answer(call.text, call.tolerance, type(error).__name__, message=str(error))
    state = torch.get_rng_state()
    # A call in place changes its input, and another call must not.
    values = [tensor.detach() for tensor in (*tensors, *gradients, *call.inputs)]
    return Answer(call.text, call.tolerance, "", (*facts, len(gradients)), (*values, state), scale=call.scale)


def _parts(result: Any) -> list[Any]:
    return [part for item in result for part in _parts(item)] if isinstance(result, (tuple, list)) else [result]


def _facts(tensor: Tensor, call: Call) -> tuple[Any, ...]:
    is_input = any(tensor is given for given in call.inputs)
    if tensor.layout != torch.strided:
        return tensor.shape, tensor.layout, tensor.dtype, tensor.requires_grad, is_input
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return tensor.shape, strides if tensor.numel() > 1 else [], tensor.dtype, tensor.requires_grad, is_input


def _gradients(output: Tensor, call: Call, number: int) -> list[Tensor]:
    inputs = [given for given in (*call.inputs, *call.parameters) if given.requires_grad]
    if not (output.requires_grad and inputs and output.numel()):
        return []
    generator = torch.Generator().manual_seed(number)
    outside = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    found = torch.autograd.grad(output, inputs, outside, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def compare(found: Answer, expected: Answer) -> str:
    """Return how two answers differ, or ""."""
    for one in (found, expected):
        if one.error and one.error not in _ERRORS:
            return f"{one.error} ({one.message[:100]}), no error that names an argument"
    if (found.error, found.message) != (expected.error, expected.message):
        return f"kernel {_said(found)}, reference {_said(expected)}"
    if found.facts != expected.facts:
        return f"kernel {found.facts}, reference {expected.facts}"
    for position, (a, b) in enumerate(zip(found.tensors, expected.tensors, strict=True)):
        if not _same(a, b, expected.tolerance, expected.scale if position else 0.0):
            return f"tensor {position} of {len(found.tensors)} differs: {_first_difference(a, b)}"
    return ""


def _said(one: Answer) -> str:
    return f"raises {one.error}: {one.message[:200]}" if one.error else "answers"


def _same(a: Tensor, b: Tensor, tolerance: float, least: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.is_meta or a.layout != torch.strided:
        return True
    if torch.equal(_bits(a), _bits(b)):
        return True
    if a.dtype not in FLOATS:
        return False
    if not tolerance:
        nan = a.isnan()
        return torch.equal(nan, b.isnan()) and torch.equal(_bits(a[~nan]), _bits(b[~nan]))
    # torch's own vectors of gelu make NaN of infinity, which its single elements do not.
    finite = a.isfinite() & b.isfinite()
    x, y = a[finite].double(), b[finite].double()
    if not len(x):
        return True
    scale = max(float(y.abs().max()), least, torch.finfo(a.dtype).tiny)
    return float((x - y).abs().max()) <= tolerance * torch.finfo(a.dtype).eps * scale


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes, so that equality tells +0 from -0."""
    dense = tensor.resolve_conj().clone(memory_format=torch.contiguous_format)
    return dense.flatten().view(torch.uint8)


def _first_difference(a: Tensor, b: Tensor) -> str:
    differs = (a != b) & ~(a.isnan() & b.isnan()) if a.shape == b.shape else None
    if differs is None or not differs.any():
        return f"{tuple(a.shape)} and {tuple(b.shape)}, or a sign of zero"
    at = tuple(differs.nonzero()[0].tolist())
    return f"{int(differs.sum())} elements, kernel {a[at].item()!r} and reference {b[at].item()!r} at {at}"


def variants() -> list[str]:
    """Return the instruction sets of the compiled library that this machine runs; none without the library."""
    with _environment():
        os.environ["PUREDROP_ISA"] = "?"
        _forget()
        try:
            _backend.library()
        except ValueError as error:
            _, found, names = str(error).partition("this machine runs: ")
            return names.split(" (")[0].split(", ") if found else []
    return []


def _use(backend: str, isa: str) -> None:
    for name, value in zip(_VARIABLES, (backend, isa), strict=True):
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    _forget()
    _backend.library()


def _forget() -> None:
    _backend.backend.cache_clear()
    _backend.library.cache_clear()


@contextmanager
def _environment() -> Iterator[None]:
    """Put the choice of the backend and the number of threads back when the block ends."""
    before, threads = {name: os.environ.get(name) for name in _VARIABLES}, torch.get_num_threads()
    try:
        yield
    finally:
        _use(*(before[name] or "" for name in _VARIABLES))
        torch.set_num_threads(threads)


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fill new memory with NaN, so that an element that nobody writes differs; silence torch's warnings."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before)
