"""Dropout sites of a model whose flags tell, without a forward, whether they would drop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from torch.nn import Module

from puredrop._text import counted
from puredrop.inspection import with_holders
from puredrop.inspection.methods import codes_in
from puredrop.inspection.watch import RATES, holds_dropout
from puredrop.inspection.wrappers import unwrapped_path, wrapped

__all__ = ["Names", "WatchedSites", "unwrapped"]

Names = Sequence[str | type[Module]]

_CONFIGURATIONS = ("config", "cfg", "args", "hparams")
_FUNCTIONS = re.compile(r"(?:feature_|alpha_|gaussian_)?dropout[123]?d?|drop_?path|drop_?block|stochastic_depth")


def unwrapped(model: Module) -> Module:
    """Return the module inside the wrappers of DDP, DataParallel, FSDP 1, torch.compile and checkpointing."""
    while (inner := wrapped(model)) is not None:
        model = inner
    return model


class WatchedSites:
    """The dropout sites of a model, as they were at one moment.

    Sites are modules that are there to drop, and modules whose forward seems to call functional dropout.

    Args:
        root: the model.
        allow: paths or types of modules that may drop in an evaluation.
        exclude: paths or types of modules that are not watched.

    Attributes:
        paths: path of each site.
        pairs: module and name of the attribute that holds the rate, of each site; "training" where no number is held.
        allowed: indexes of the sites that may drop in an evaluation.
    """

    def __init__(self, root: Module, allow: Names, exclude: Names) -> None:
        self.root = root
        self._by_path = dict(root.named_modules())
        self.paths: list[str] = []
        self.pairs: list[tuple[Module, str]] = []
        for path, module in self._by_path.items():
            rate = _rate_name(module)
            if rate is not None and not self._matches(path, exclude):
                self.paths.append(path)
                self.pairs.append((module, rate))
        self.allowed = frozenset(i for i, path in enumerate(self.paths) if self._matches(path, allow))
        self._fields = [(vars(module), rate) for module, rate in self.pairs]
        # Where no attribute holds the rate, the site is taken to drop whenever it is in training mode.
        self.rates = {path: self._rate(i) for i, path in enumerate(self.paths)}

    def check_names(self, argument: str, names: Names) -> None:
        """Raise ValueError if a path names no module of the model."""
        shown = {unwrapped_path(path) for path in self._by_path}
        for name in names:
            if isinstance(name, str) and name not in shown:
                close = get_close_matches(name, shown, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{argument} names {name!r}, which is no module of the model{hint}")

    def dropping(self) -> list[bool]:
        """Return for each site whether it would drop now: it is in training mode and its rate is not 0."""
        return [fields["training"] and fields[rate] != 0 for fields, rate in self._fields]

    @property
    def count(self) -> int:
        """Number of sites whose rate was not 0."""
        return sum(bool(rate != 0) for rate in self.rates.values())

    def held(self, indexes: Iterable[int]) -> list[int]:
        """Return those of some sites that the model still holds."""
        current = set(map(id, self.root.modules()))
        return sorted(i for i in indexes if id(self.pairs[i][0]) in current)

    def is_frozen(self, index: int) -> bool:
        """Return whether a site is off with a part of the model whose weights are not trained."""
        path = self._outermost(index, False)
        weights = [weight.requires_grad for weight in self._by_path[path].parameters()]
        return bool(path) and bool(weights) and not any(weights)

    def place(self, indexes: Sequence[int], training: bool) -> tuple[str, str]:
        """Return the path of the outermost module in a mode around the first of some sites, and a detail for readers.

        Args:
            indexes: the sites.
            training: the mode.
        """
        module, rate = self.pairs[indexes[0]]
        if not training and module.training:
            is_zero = self._rate(indexes[0]) == 0
            detail = f"{rate}=0" if is_zero else "training=False in its forward"
            return unwrapped_path(self.paths[indexes[0]]), detail
        places = dict.fromkeys(unwrapped_path(self._outermost(i, training, frozenset(indexes))) for i in indexes)
        others = len(places) - 1
        more = f", and {counted(others, 'other place')}" if others else ""
        return next(iter(places)), f"training={training}{more}"

    def _rate(self, index: int) -> float:
        """Return the present rate of a site, 1 where no attribute holds it."""
        module, rate = self.pairs[index]
        return 1.0 if rate == "training" else getattr(module, rate)

    def _outermost(self, index: int, training: bool, within: frozenset[int] | None = None) -> str:
        """Return the path of the outermost module of those around a site that are in the same mode without a gap.

        Args:
            index: the site.
            training: the mode.
            within: the sites that the module may hold, besides those with a rate of 0; None for all.
        """
        path = self.paths[index]
        while path:
            around = path.rpartition(".")[0]
            prefix = f"{around}." if around else ""
            held = (i for i, path in enumerate(self.paths) if path == around or path.startswith(prefix))
            has_others = within is not None and any(i not in within and self._rate(i) != 0 for i in held)
            if self._by_path[around].training != training or has_others:
                break
            path = around
        return path

    def _matches(self, path: str, names: Names) -> bool:
        """Return whether a module, or one around it, is named by its path or its class."""
        kinds = tuple(name for name in names if not isinstance(name, str))
        return any(
            unwrapped_path(one) in names or isinstance(self._by_path[one], kinds) for one in with_holders([path])
        )


def _rate_name(module: Module) -> str | None:
    """Return the attribute that holds a site's rate, "training" where none holds a number, None for other modules."""
    if "training" not in vars(module):  # TorchScript keeps the flag elsewhere
        return None
    held = _numbers(vars(module))
    if holds_dropout(module):
        return next((name for name in RATES if name in held), "training")
    if any(holds_dropout(child) for child in module.children()):
        return None  # the child's flag tells, and the rate is most likely its own
    named = {name: rate for name, rate in held.items() if "drop" in name.lower()}
    if named:
        # A rate of 0 here may be one of several; the largest decides.
        return max(named, key=lambda name: named[name])
    return "training" if _calls_dropout(module) and _is_configured(module) else None


def _numbers(fields: dict[str, Any]) -> dict[str, float]:
    """Return the fields that hold a number between 0 and 1."""
    return {
        name: value
        for name, value in fields.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    }


def _is_configured(module: Module) -> bool:
    """Return False if a module's configuration states rates and all of them are 0."""
    for name in _CONFIGURATIONS:
        fields = getattr(getattr(module, name, None), "__dict__", {})
        rates = [rate for field, rate in _numbers(fields).items() if "drop" in field.lower()]
        if rates:
            return any(rates)
    return True


def _calls_dropout(module: Module) -> bool:
    """Return whether the code of a module's forward has the name of a function that drops."""
    if type(module).__module__.startswith("torch.nn."):
        return False
    codes = list(codes_in(type(module).forward))
    keywords = {text for code in codes for names in code.co_consts if isinstance(names, tuple) for text in names}
    words = keywords.union(*(code.co_names for code in codes))
    return any(isinstance(word, str) and (_FUNCTIONS.fullmatch(word) or word == "dropout_p") for word in words)
