"""Watch of one forward: the modules that it enters, and the calls in them that drop."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from puredrop._torch import DropoutNd, without_modes
from puredrop.functional.interception import recognise
from puredrop.inspection.callers import calling_line, is_from_puredrop
from puredrop.inspection.frames import Frame, Hooks
from puredrop.inspection.scripted import ScriptedFrames

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RATES", "Event", "Visit", "Watch", "holds_dropout", "kind_of", "positions", "rate_of"]

_OPERATORS = {torch.ops.puredrop.dropout.default: "dropout"}
_OPERATORS[torch.ops.puredrop.gaussian_dropout.default] = "gaussian_dropout"
RATES = ("p", "drop_prob", "drop_rate", "prob", "dropout", "dropout_p")
"""Attributes of a module that is there to drop, one of which holds its rate; the first that does counts."""


def rate_of(module: Module) -> float | None:
    """Return a module's drop probability, a number or a 0-d tensor; None if it has none."""
    for name in RATES:
        rate = getattr(module, name, None)
        if isinstance(rate, (int, float)) and not isinstance(rate, bool):
            return float(rate)
        if isinstance(rate, Tensor) and rate.dim() == 0:
            return float(rate)
    return None


def holds_dropout(module: Module) -> bool:
    """Return whether a module is there to drop.

    True for torch's dropout layers and ours, for attention and recurrent layers with a rate, and for modules with a
    rate whose class name holds "drop" or "stochasticdepth".
    """
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return bool(module.dropout)
    match = re.search(r"drop|stochasticdepth", type(module).__name__, re.IGNORECASE)
    return isinstance(module, DropoutNd) or (match is not None and rate_of(module) is not None)


def kind_of(module: Module) -> str:
    """Return a module's kind, named like a function: "drop_path" for DropPath."""
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__).lower()


@dataclass
class Event:
    """A call outside of any dropout module that may drop."""

    path: str
    kind: str
    p: float | None
    shape: tuple[int, ...] | None
    where: str
    drops: bool
    uses: int = 1
    note: str = ""


@dataclass
class Visit:
    """A dropout module that the forward entered.

    Args:
        path, shape, where, uses, drops: as those of an event.
        module: the module.
        p: its rate when the forward entered it.
        is_off: whether it was in eval mode, or a call in it had a rate and was told not to drop.
    """

    path: str
    module: Module
    shape: tuple[int, ...] | None
    where: str
    p: float | None
    uses: int = 0
    drops: bool = False
    is_off: bool = False


class Watch(TorchFunctionMode):
    """Record of one forward: the dropout modules that it visits, and the calls that drop. It changes no result.

    Args:
        model: the model to watch.

    Attributes:
        calls: visits by their modules' paths; events by module, kind, line and the number of earlier calls at that line
            in one run of the module, so that an event is recognised in another mode, where other calls may be missing.
        dropped: path of the site of the last call, None if that call dropped nothing.
        output: the result of the forward.
        entered: paths of the modules that ran.
    """

    dropped: str | None = None
    output: Any = None

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model
        self.calls: dict[Hashable, Visit | Event] = {}
        self.entered: set[str] = set()
        self._frames = [Frame("")]
        modules = dict(model.named_modules())
        scripted = {path: module for path, module in modules.items() if isinstance(module, torch.jit.ScriptModule)}
        self._hooks = Hooks(
            [(module, path, holds_dropout(module)) for path, module in modules.items() if path not in scripted]
        )
        self._scripted = ScriptedFrames(scripted)

    def __enter__(self) -> Self:
        self._hooks.put_on(self)
        self._scripted.put_on(self)
        self._position = positions()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._hooks.take_off(self)
        self._scripted.take_off()

    @property
    def path(self) -> str:
        """Path of the module that runs."""
        return self._frames[-1].path

    def enter(self, path: str, is_site: bool, module: Module, inputs: tuple[Any, ...]) -> None:
        """Push the frame of a module that begins, and record the visit of a dropout module."""
        self._note_unseen()
        self.entered.add(path)
        visit: Visit | None = None
        if is_site:
            shape = next((tuple(value.shape) for value in inputs if isinstance(value, Tensor)), None)
            where = calling_line() or _class(module)
            earlier = self.calls.setdefault(path, Visit(path, module, shape, where, rate_of(module)))
            assert isinstance(earlier, Visit)  # a module's path has no colon
            visit = earlier
            visit.uses += 1
            visit.is_off |= not module.training
        self._frames.append(Frame(path, visit))

    def leave(self) -> None:
        """Pop the frame of the module that has returned or failed."""
        self._note_unseen()
        self._frames.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and record it if it drops."""
        kwargs = kwargs or {}
        self._note_unseen()
        self.dropped = None
        call = recognise(func, args, kwargs)
        output = func(*args, **kwargs)
        position = positions()
        drew = position != self._position or kwargs.get("generator") is not None
        self._position = position
        if call is not None:
            if call.kind != "attention" or call.p or not call.training:
                self._add(call.kind, float(call.p), tuple(call.input.shape), call.training and call.p > 0)
        elif func in _OPERATORS:
            self._add(_OPERATORS[func], float(args[2]), tuple(args[0].shape), float(args[2]) > 0)
        elif drew and not is_from_puredrop():
            name = getattr(func, "__name__", str(func))
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            p = 1 - args[1] if name == "bernoulli_" and len(args) > 1 and isinstance(args[1], float) else None
            self._add("draw", p, shape, True, f"draws by {name}")
        return output

    def _note_unseen(self) -> None:
        """Record a draw that happened since the last call, out of sight."""
        position = positions()
        if position != self._position:
            self._position = position
            self._add("unseen", None, None, True, "something drew random numbers out of sight")

    def _add(self, kind: str, p: float | None, shape: tuple[int, ...] | None, drops: bool, note: str = "") -> None:
        frame = self._frames[-1]
        if frame.site is not None:
            frame.site.drops |= drops
            frame.site.is_off |= bool(p) and not drops
            self.dropped = frame.path
            return
        where = calling_line() or "?"
        path = f"{frame.path}:{kind}{frame.count(kind)}"
        event: Visit | Event = Event(path, kind, p, shape, where, False, 0, note)
        event = self.calls.setdefault((frame.path, kind, where, frame.count((kind, where))), event)
        event.uses += 1
        event.drops |= drops
        self.dropped = event.path


def positions() -> tuple[bytes, ...]:
    """Return the states of torch's default generators, CPU and GPUs."""
    with without_modes():
        states = [torch.default_generator.get_state()]
        if torch.cuda.is_initialized():
            states += [generator.get_state() for generator in torch.cuda.default_generators]
        return tuple(state.numpy().tobytes() for state in states)


def _class(module: Module) -> str:
    kind = type(module)
    package = ".".join(kind.__module__.split(".")[:2])
    return f"{package}.{kind.__name__}"
