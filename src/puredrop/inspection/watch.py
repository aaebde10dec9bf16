"""One forward under watch: which modules were entered, and which calls in them drop."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from puredrop._torch import DropoutNd
from puredrop.functional.interception import recognise

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Event", "Visit", "Watch", "holds_dropout", "kind_of", "positions", "rate_of"]

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
_OPERATORS = {torch.ops.puredrop.dropout.default: "dropout"}
_OPERATORS[torch.ops.puredrop.gaussian_dropout.default] = "gaussian_dropout"
_RATES = ("p", "drop_prob", "drop_rate", "prob", "dropout", "dropout_p")


def rate_of(module: Module) -> float | None:
    """The rate a module says it drops at, or None; a 0-d tensor is one, too."""
    for name in _RATES:
        rate = getattr(module, name, None)
        if isinstance(rate, (int, float)) and not isinstance(rate, bool):
            return float(rate)
        if isinstance(rate, Tensor) and rate.dim() == 0:
            return float(rate)
    return None


def holds_dropout(module: Module) -> bool:
    """Whether a module is there to drop.

    Torch's and our layers, attention and recurrent ones with a rate, and what calls itself Drop or StochasticDepth and
    has a rate.
    """
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return bool(module.dropout)
    named = re.search(r"drop|stochasticdepth", type(module).__name__, re.IGNORECASE)
    return isinstance(module, DropoutNd) or (named is not None and rate_of(module) is not None)


def kind_of(module: Module) -> str:
    """What a module does, as functions are called: DropPath is drop_path."""
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__).lower()


@dataclass
class Event:
    """A call that drops outside of any dropout module."""

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
    """A dropout module that was entered."""

    path: str
    module: Module
    shape: tuple[int, ...] | None
    where: str
    uses: int = 0
    drops: bool = False


@dataclass
class _Frame:
    """A module being run: how many calls of each kind it has made, and at each line."""

    path: str
    visit: Visit | None
    counts: dict[Hashable, int] = field(default_factory=dict)

    def count(self, what: Hashable) -> int:
        """How often this was asked before."""
        before = self.counts.get(what, 0)
        self.counts[what] = before + 1
        return before


class Watch(TorchFunctionMode):
    """While it is open, notes what the model's forward does; answers nothing itself.

    Args:
        model: whose modules are told apart by their paths.

    Attributes:
        found: visits by their modules' paths, events by module, kind, line and how often that line came before in one
            run of the module: so that an event of another mode is known again where other calls are left out there.
        dropped: path of the site that the last call was, None where it was none.
        output: what the forward returned.
    """

    dropped: str | None = None
    output: Any = None

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model
        self.found: dict[Hashable, Visit | Event] = {}
        self._frames = [_Frame("", None)]
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for path, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # has no hooks; what it draws shows in the generator
            self._hooks.append(module.register_forward_pre_hook(self._entering(path), prepend=True))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        self._position = positions()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()

    @property
    def path(self) -> str:
        """Of the module that is being run."""
        return self._frames[-1].path

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: Module, inputs: tuple[Any, ...]) -> None:
            visit: Visit | None = None
            if holds_dropout(module):
                shape = next((tuple(one.shape) for one in inputs if isinstance(one, Tensor)), None)
                known = self.found.setdefault(path, Visit(path, module, shape, _caller() or _class(module)))
                assert isinstance(known, Visit)  # a module's path has no colon
                visit = known
                visit.uses += 1
            self._frames.append(_Frame(path, visit))

        return enter

    def _leaving(self, *_: Any) -> None:
        self._frames.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook."""
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
        elif drew and not _is_ours():
            name = getattr(func, "__name__", str(func))
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            p = 1 - args[1] if name == "bernoulli_" and len(args) > 1 and isinstance(args[1], float) else None
            self._add("draw", p, shape, True, f"draws by {name}")
        return output

    def _note_unseen(self) -> None:
        """What advanced the generator since the last call was none that can be seen."""
        position = positions()
        if position != self._position:
            self._position = position
            self._add("unseen", None, None, True, "something drew random numbers out of sight")

    def _add(self, kind: str, p: float | None, shape: tuple[int, ...] | None, drops: bool, note: str = "") -> None:
        frame = self._frames[-1]
        if frame.visit is not None:
            frame.visit.drops |= drops
            self.dropped = frame.path
            return
        where = _caller() or "?"
        path = f"{frame.path}:{kind}{frame.count(kind)}"
        event = Event(path, kind, p, shape, where, False, 0, note)
        known = self.found.setdefault((frame.path, kind, where, frame.count((kind, where))), event)
        known.uses += 1
        known.drops |= drops
        self.dropped = known.path


def positions() -> tuple[bytes, ...]:
    """Where torch's default generators stand, CPU and GPUs."""
    states = [torch.default_generator.get_state()]
    if torch.cuda.is_initialized():
        states += [generator.get_state() for generator in torch.cuda.default_generators]
    return tuple(state.numpy().tobytes() for state in states)


def _frames() -> Iterator[tuple[str, int]]:
    """Files and lines of the code that is being run, innermost first, without watches' own."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__ and frame.f_code.co_name != "__torch_function__":
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _is_ours() -> bool:
    """Whether the call comes from this package, which draws its keys so."""
    files = [name for name, _ in _frames() if not name.startswith(_TORCH)]
    return bool(files) and files[0].startswith(_HERE) and not files[0].startswith(str(Path(__file__).parent))


def _caller() -> str | None:
    """File and line of the user's code that led here; None where there is none below the call of `sites`."""
    for name, line in _frames():
        if name.startswith((_TORCH, "<")):
            continue
        if name.startswith(str(Path(__file__).parent)):
            return None
        if not name.startswith(_HERE):
            return f"{_short(Path(name))}:{line}"
    return None


def _short(path: Path) -> str:
    """A file within its package, or below the working folder, or by its name."""
    if "site-packages" in path.parts:
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def _class(module: Module) -> str:
    kind = type(module)
    package = ".".join(kind.__module__.split(".")[:2])
    return f"{package}.{kind.__name__}"
