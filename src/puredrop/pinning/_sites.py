"""Sites of a pinned model: their keys, and the number of their uses in the open forward."""

from __future__ import annotations

import copy
import itertools
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from puredrop._torch import backward_number, is_exporting
from puredrop._torch_transforms import outside_transforms
from puredrop.inspection.state import opening
from puredrop.ops import Place, SiteKeySource, active, is_spread
from puredrop.pinning._forward_state import ForwardState
from puredrop.pinning._mapping import check_site
from puredrop.pinning._ranks import check_whole
from puredrop.pinning._samples import Layout, Samples, Windows, placed
from puredrop.rng import Key, as_number, fold_in, folded

__all__ = ["Keys", "SharedSite", "PinnedSite"]


class PinnedSite(SiteKeySource):
    """Key source of one site: it answers each call with the key and the place of this use.

    Args:
        keys: keys of the model, which know the open forward.
        layout: path of the site, and the layout of its tensor.
        tail: numbers folded into its keys last, for several masks of one use: weights, boundaries between layers.
    """

    pair: Tensor
    """Row of the table with the step's key and the key of call 0, for calls that need a tensor."""
    table: Tensor | None = None

    def __init__(self, keys: Keys, layout: Layout, tail: tuple[int, ...] = ()) -> None:
        self.keys = keys
        self.layout = layout
        self.tail = tail
        self.uses = 0
        self._base = int(keys.base.fold_in(layout.path))
        self._whole: set[tuple[int, ...]] = set()  # calls and shapes that are known to be whole tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> PinnedSite | None:
        """Copy the site with its model; a layer that is copied alone belongs to no model."""
        if id(self.keys.forward.root) not in memo:
            return None
        new = memo[id(self)] = PinnedSite.__new__(PinnedSite)
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    @property
    def samples(self) -> Samples:
        """Samples of the open forward."""
        return self.keys.forward.samples

    def begin_step(self, step: int) -> tuple[int, int]:
        """Replace the keys by those of a step.

        Returns:
            The step's key and the key of call 0, as numbers.
        """
        self._step_key = folded(self._base, step)
        first = self._number(0)
        self._of_calls = [Key(first)]
        return self._step_key, first

    def _number(self, call: int) -> int:
        number = folded(self._step_key, call)
        for data in self.tail:
            number = folded(number, data)
        return number

    def key(self, call: int) -> Key:
        """Return the key of a call in this step, with the tail folded in."""
        keys = self._of_calls
        while len(keys) <= call:
            keys.append(Key(self._number(len(keys))))
        return keys[call]

    def resolve(self, kind: str, input: Tensor, place: Place) -> tuple[Key | Tensor, Place]:
        """Return the key of this use in the open forward, and its place among the step's samples."""
        forward, layout = self.keys.forward, self.layout
        is_traced = torch.compiler.is_compiling()
        if not is_traced and backward_number() != -1 and not forward.is_replayed:
            opening(forward)  # a weight may be read between forwards
            if not forward.is_replayed:
                self._refuse_backward()
        if not is_traced:
            forward.check_thread()
            if forward.slices is not None or forward.is_by_hand:
                check_site(layout.path, layout.sample_dim, input, place, forward.slices, forward.samples.count)
        elif is_exporting():  # torch 2.6 exports past the hooks of a model
            forward.refuse_tracer()
        call = self._use(forward)
        if forward.is_parallel:
            self._check_whole(input, call, is_traced)
        if not is_traced and forward.observer is not None:
            answer = forward.observer.note(forward, kind, input, place, layout, call)
            if answer is not None:
                return answer, place
        if layout.window is not None or not forward.samples.are_whole:
            if not is_traced and forward.refused:
                forward.check_placement(layout, input.shape)
            place = placed(input, place, forward.samples, layout)
        if is_traced:
            forward.is_compiled = True
        if is_traced or not input.is_cpu:
            return self._tensor(call, input.device), place
        return self.key(call), place

    def _refuse_backward(self) -> NoReturn:
        """Refuse a use in backward that repeats an unknown use."""
        raise RuntimeError(
            f"site {self.layout.path!r} is run in backward, but not by torch.utils.checkpoint, so the use that it "
            "repeats is unknown; use torch.utils.checkpoint"
        )

    def _use(self, forward: ForwardState) -> int:
        """Count a use in the open forward, and return its number."""
        if forward.depth == 0:
            if self.layout.sample_dim is None:
                return 0  # a weight that is read between forwards
            raise RuntimeError(
                f"site {self.layout.path!r} was used outside of a forward of the pinned model, so its call number and "
                "samples are unknown; call the model itself, pin the part that you call, or open the forward by hand: "
                "`with run.forward():`"
            )
        call = self.uses
        self.uses = call + 1
        forward.has_dropped = True
        return call

    def _tensor(self, call: int, device: torch.device) -> Tensor:
        if self.pair.device != device:
            self.keys.move(device)
        if call == 0:
            return self.pair[1]
        key = fold_in(self.pair[0], call)
        for data in self.tail:
            key = fold_in(key, data)
        return key

    def _check_whole(self, input: Tensor, call: int, is_traced: bool) -> None:
        path = self.layout.path
        if is_spread(input) or path in self.keys.windows:
            return
        if is_traced:
            if not self._whole:
                raise RuntimeError(
                    f"site {path!r} drops from a plain tensor in a compiled tensor-parallel model, where it cannot be "
                    "seen whether the tensor is a part; run one forward uncompiled first, or give windows"
                )
        elif (call, *input.shape) not in self._whole:
            check_whole(input, path)
            self._whole.add((call, *input.shape))

    def fold_in(self, data: int | str) -> SiteKeySource:
        """Return the site of one of several masks of a use."""
        return self.keys.site(self.layout.path, (*self.tail, as_number(data)), self.layout.sample_dim)

    def with_sample_dim(self, dim: int) -> SiteKeySource:
        """Return the same site for samples in another dimension, unless the user has given the dimension."""
        return self.keys.site(self.layout.path, self.tail, dim)

    def __repr__(self) -> str:
        return f"pinned({self.layout.path!r})"


class SharedSite(SiteKeySource):
    """Key source of a layer that belongs to several pinned models; the model that runs gives the keys.

    Args:
        sites: the layer's site in each model.
    """

    def __init__(self, sites: tuple[PinnedSite, ...]) -> None:
        self.sites = sites

    @staticmethod
    def of(sites: Sequence[PinnedSite]) -> SiteKeySource | None:
        """Return a layer's key source: None without sites, a single site itself, a `SharedSite` for several."""
        return SharedSite(tuple(sites)) if len(sites) > 1 else sites[0] if sites else None

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteKeySource | None:
        return SharedSite.of([new for site in self.sites if (new := copy.deepcopy(site, memo)) is not None])

    def _running(self) -> PinnedSite:
        """Return the site of the innermost model that runs."""
        source: Any = active.source
        while source is not None:
            for site in self.sites:
                if site.keys.forward is source:
                    return site
            source = source.outer
        return self.sites[0]

    @property
    def samples(self) -> Samples:
        """Samples of the open forward."""
        return self._running().samples

    def resolve(self, kind: str, input: Tensor, place: Place) -> tuple[Key | Tensor, Place]:
        """Answer as the site of the running model."""
        return self._running().resolve(kind, input, place)

    def fold_in(self, data: int | str) -> SiteKeySource:
        """Return one of several masks of the running model's site."""
        return self._running().fold_in(data)

    def with_sample_dim(self, dim: int) -> SiteKeySource:
        """Return the running model's site for samples in another dimension."""
        return self._running().with_sample_dim(dim)

    def __repr__(self) -> str:
        return " or ".join(map(repr, self.sites))


_numbers = itertools.count()
_keys_by_number: weakref.WeakValueDictionary[str, Keys] = weakref.WeakValueDictionary()


def _make(number: str, name: str, path: str, tail: tuple[int, ...], dim: int | None) -> int:
    """Make a site while a compiler traces; it runs this function for its result, since it cannot hash a path."""
    keys = _keys_by_number[number]
    if name not in keys.sites:
        keys.make(name, path, tail, dim)
    return 0


class _Attributes:
    """Namespace of the sites: Dynamo guards attributes one by one, but a dict as a whole."""


class Keys:
    """Sites of a model, made at their first use.

    Args:
        base: key from which every site's key is folded.
        sample_dims, windows: the user's settings for sites, by path.
    """

    forward: ForwardState

    def __init__(self, base: Key, sample_dims: Mapping[str, int | None], windows: Windows) -> None:
        self.base = base
        self.sample_dims = dict(sample_dims)
        self.windows = dict(windows)
        self.step = 0
        self.sites: dict[str, PinnedSite] = {}
        self._by_name = _Attributes()
        self._table = _table(16, torch.device("cpu"))
        self._are_checked = not (self.sample_dims or self.windows)
        self._register()

    def _register(self) -> None:
        self.number = f"model {next(_numbers)}"
        _keys_by_number[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give the copy a number of its own."""
        vars(self).update(state)
        self._register()

    def check_names(self) -> None:
        """Check the paths of sample_dims and windows once, after a forward, when all sites are known.

        Raises:
            ValueError: if a path is no site's.
        """
        if self._are_checked:
            return
        paths = {site.layout.path for site in self}
        for name, settings in (("sample_dims", self.sample_dims), ("windows", self.windows)):
            for path in settings:
                if path not in paths:
                    raise ValueError(f"{name} has {path!r}, which is no site; the sites are {sorted(paths)}")
        self._are_checked = True

    def __iter__(self) -> Iterator[PinnedSite]:
        return iter(self.sites.values())

    def site(self, path: str, tail: tuple[int, ...], dim: int | None) -> PinnedSite:
        """Return the site of a path, mask and sample dimension, unless the user has given the dimension."""
        name = f"{path} {tail} {dim}".replace(
            ".", "\n"
        )  # Dynamo refuses dots in attributes, so they become newlines, which no path has
        if torch.compiler.is_compiling():
            _make(self.number, name, path, tail, dim)
        elif name not in self.sites:
            self.make(name, path, tail, dim)
        site: PinnedSite = getattr(self._by_name, name)
        return site

    def make(self, name: str, path: str, tail: tuple[int, ...], dim: int | None) -> None:
        """Make a new site."""
        layout = Layout(path, self.sample_dims.get(path, dim), self.windows.get(path))
        site = PinnedSite(self, layout, tail)
        self.sites[name] = site
        setattr(self._by_name, name, site)
        if len(self.sites) > len(self._table):
            with outside_transforms():
                self._table = _table(2 * len(self._table), self._table.device)
            self.go_to(self.step)
        else:
            self._write([site], len(self.sites) - 1)

    def go_to(self, step: int) -> None:
        """Set the step, and the keys of all sites."""
        self.step = step
        self._write(list(self), 0)

    def move(self, device: torch.device) -> None:
        """Move the table of keys to a device."""
        with outside_transforms():
            self._table = _table(len(self._table), device)
        self._write(list(self), 0)

    def _write(self, sites: list[PinnedSite], row: int) -> None:
        """Write keys into the table in place, because captured or compiled code reads the new step there."""
        step = self.step
        numbers = array("Q", [number for site in sites for number in site.begin_step(step)])
        with outside_transforms():
            rows = self._table[row : row + len(sites)]
            rows.copy_(torch.frombuffer(numbers, dtype=torch.int64).view(-1, 2) if numbers else rows)
        if sites and sites[0].table is not self._table:
            for site, pair in zip(sites, rows, strict=True):
                site.table, site.pair = self._table, pair


def _table(rows: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(rows, 2, dtype=torch.int64, device=device)
