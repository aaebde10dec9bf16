"""The keys of a pinned model: its sites by name, and the step they are all at."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puredrop.reproducible._samples import Layout, Windows
from puredrop.reproducible._site import Site
from puredrop.rng import Key

if TYPE_CHECKING:
    from puredrop.reproducible._forward import Forward

__all__ = ["Keys"]

_numbers = itertools.count()
_all: weakref.WeakValueDictionary[str, Keys] = weakref.WeakValueDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _make(number: str, name: str, path: str, tail: tuple[int, ...], dim: int | None) -> int:
    """Have a site made while a compiler traces, which cannot hash a path: it runs this, for its result."""
    keys = _all[number]
    if name not in keys.sites:
        keys.make(name, path, tail, dim)
    return 0


class Keys:
    """Sites, made when they are first asked for.

    Args:
        base: what every key is folded from.
        sample_dims, windows: what the user said of sites, by path.
    """

    forward: Forward

    def __init__(self, base: Key, sample_dims: Mapping[str, int | None], windows: Windows) -> None:
        self.base = base
        self.sample_dims = dict(sample_dims)
        self.windows = dict(windows)
        self.step = 0
        self.sites: dict[str, Site] = {}
        self._by_name = SimpleNamespace()  # as attributes too, which a compiler looks up one by one
        self._table = _table(16, torch.device("cpu"))
        self._are_checked = not (self.sample_dims or self.windows)
        self._register()

    def _register(self) -> None:
        self.number = f"model {next(_numbers)}"
        _all[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has a number of its own."""
        vars(self).update(state)
        self._register()

    def check_names(self) -> None:
        """After a forward, when all sites are known: refuse names that are none of theirs, once.

        Raises:
            ValueError: for a name in sample_dims or windows that no site has.
        """
        if self._are_checked:
            return
        paths = {site.layout.path for site in self}
        for name, given in (("sample_dims", self.sample_dims), ("windows", self.windows)):
            for path in given:
                if path not in paths:
                    raise ValueError(f"{name} names {path!r}, which is no site; the sites are {sorted(paths)}")
        self._are_checked = True

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites.values())

    def site(self, path: str, tail: tuple[int, ...], dim: int | None) -> Site:
        """The site of a path, of one mask of a use, whose samples lie in a dimension, unless the user said where."""
        name = f"{path} {tail} {dim}"
        if torch.compiler.is_compiling():
            _make(self.number, name, path, tail, dim)
        elif name not in self.sites:
            self.make(name, path, tail, dim)
        found: Site = getattr(self._by_name, name)
        return found

    def make(self, name: str, path: str, tail: tuple[int, ...], dim: int | None) -> None:
        """A new one."""
        layout = Layout(path, self.sample_dims.get(path, dim), self.windows.get(path))
        site = Site(self, layout, tail)
        self.sites[name] = site
        setattr(self._by_name, name, site)
        if len(self.sites) > len(self._table):
            self._table = _table(2 * len(self._table), self._table.device)
            self._write(list(self), 0)
        else:
            self._write([site], len(self.sites) - 1)

    def go_to(self, step: int) -> None:
        """Be at a step."""
        self.step = step
        for site in self:
            site.begin_step(step)
        self._write(list(self), 0)

    def move(self, device: torch.device) -> None:
        """Have the keys that are tensors on a device."""
        self._table = _table(len(self._table), device)
        self._write(list(self), 0)

    def _write(self, sites: list[Site], row: int) -> None:
        """Write into the one table, in place: what was captured or compiled reads the new step there."""
        rows = self._table[row : row + len(sites)]
        numbers = [site.numbers() for site in sites]
        rows.copy_(torch.tensor(numbers, dtype=torch.int64, device="cpu").view(-1, 2))
        if sites and sites[0].table is not self._table:
            for site, pair in zip(sites, rows, strict=True):
                site.table, site.pair = self._table, pair


def _table(rows: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(rows, 2, dtype=torch.int64, device=device)
