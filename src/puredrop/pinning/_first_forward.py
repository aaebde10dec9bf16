"""Examination of a pinned model's first training forward: where samples lie, and what is not pinned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from puredrop._torch import fsdp_mesh, is_recorded, transforms_active
from puredrop._torch_modes import any_mode, is_compiled
from puredrop.conversion import as_ours
from puredrop.inspection.axes import is_rowwise
from puredrop.inspection.watch import holds_dropout, kind_of, rate_of
from puredrop.nn.keyed import HasKey
from puredrop.ops import Place, is_spread
from puredrop.pinning._draws import DrawWatch, Unpinned, UnpinnedWarning, forgets_generators, own_recomputation
from puredrop.pinning._forward_state import Observer
from puredrop.pinning._names import named
from puredrop.pinning._placement import ObservedUse, Placement, judge
from puredrop.pinning._ranks import holds_parts
from puredrop.pinning._report import PinReport, SiteRecord
from puredrop.pinning._samples import Layout, count_of
from puredrop.pinning._trial import Pin, Uses, try_model

__all__ = ["FirstForward"]


class FirstForward(Observer):
    """Examination of the first forward in training mode; nothing is watched afterwards.

    Args:
        pin: function that pins a copy of the model with the same settings.
        sample_dims: the user's settings, by path.
        is_guessed: whether a module may have its samples in another dimension than the first, and nothing says which.
        is_strict: whether what is not pinned or not shown is refused.

    Attributes:
        unpinned: places that are not pinned, by path, kind and line.
        placements: judgements by path and sample dimension.
        records: kind and shape of each site that the forward reached.
        is_done: whether a forward has been examined.
        unsearched: what was not examined, and why, or "".
    """

    def __init__(self, pin: Pin, sample_dims: Mapping[str, int | None], is_guessed: bool, is_strict: bool) -> None:
        self._pin = pin
        self._sample_dims = sample_dims
        self._is_guessed = is_guessed
        self._is_strict = is_strict
        self._is_compiled = False
        self._has_gradient = False
        self._depth: int | None = None
        self._watch: DrawWatch | None = None
        self._trials: list[Uses] = []
        self._draws = False  # whether a trial drew, so that another may take other ways
        self._why = ""
        self.unpinned: dict[tuple[str, str, str], Unpinned] = {}
        self.placements: dict[tuple[str, int | None], Placement] = {}
        self.records: dict[tuple[str, int | None], tuple[str, tuple[int, ...]]] = {}
        self.is_done = False
        self.unsearched = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstForward:
        """Copy the findings; a copy of a model that is not examined yet examines its own first forward."""
        new = FirstForward(self._pin, self._sample_dims, self._is_guessed, self._is_strict)
        memo[id(self)] = new
        if self.is_done:
            vars(new).update(vars(self))
        return new

    def begin(self, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Try the model on other numbers of samples, then watch the call for draws."""
        if self.is_done or self._depth is not None or transforms_active() or is_recorded() or any_mode():
            return
        if any(nn.parameter.is_lazy(tensor) for tensor in (*forward.root.parameters(), *forward.root.buffers())):
            return  # this forward gives them sizes, and draws their values
        self._is_compiled = is_compiled(forward.root)
        self._has_gradient = torch.is_grad_enabled()
        self._try(forward, args, kwargs)
        self._depth = forward.depth + 1
        if self._is_compiled:
            forward.refuses_all = True
            if not self._trials:
                self.unsearched = (
                    "compiled code hides draws of random numbers, so not all may be listed; call the model once before "
                    "torch.compile"
                )
        else:
            self._watch = DrawWatch(forward.root, lambda: forward.path, self._add)
            self._watch.__enter__()

    def _try(self, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find where samples lie on copies of the model."""
        dim = forward.sample_dim
        count, is_distributed = count_of(dim, args, kwargs)
        self._why = self._untriable(forward.root, args, kwargs, count, is_distributed)
        if self._why or is_rowwise(forward.root, args, kwargs):
            return
        assert count is not None
        run = partial(try_model, forward.root, args, kwargs, count, dim, self._pin)
        attempt = run(is_fake=True)
        if not attempt.trials:  # a mask over time has as many indices as there are samples, by chance
            first = run(is_fake=True, only_first=True)
            attempt = first if first.trials else attempt
        if self._is_compiled:
            for draw in attempt.draws:
                self._add(*draw)
        if not attempt.trials and not self._is_compiled and not _shares_work():
            attempt = run(is_fake=False)
        if not attempt.trials:
            self._why = f"the model runs on no other number of samples: {attempt.reason}"
        self._trials = [trial.uses for trial in attempt.trials]
        self._draws = bool(attempt.draws)
        if len(self._trials) > 1:
            for path, sample_dim in self._trials[0]:
                self._judge(forward, Layout(path, sample_dim), None)

    def _untriable(
        self, root: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int | None, is_distributed: bool
    ) -> str:
        """Return the reason why a model is not tried, or ""."""
        if self._is_guessed:
            return "a module has batch_first=False, so samples may lie in dimension 1; say where: sample_dim=1, or 0"
        if not count:
            return "no tensor among the model's arguments says how many samples there are"
        if is_distributed or holds_parts(root) or any(_is_sharded(module) for module in root.modules()):
            return "the model is sharded over processes"
        if _holds_others((*args, *kwargs.values())):
            return "an argument is a packed, nested or sparse tensor"
        return ""

    def note(self, forward: Any, kind: str, input: Tensor, place: Place, layout: Layout, call: int) -> Any:
        """Record a use, and judge it where the trial has one forward alone."""
        key = layout.path, layout.sample_dim
        if self.is_done:
            self._check_late(key)
            return
        if forward.depth == 0 or self._depth is None:
            return
        is_placed = place.window_shape is not None or place.sample_ids is not None
        if key not in self.records or key not in self.placements:
            count = forward.samples.count or 0
            use = ObservedUse(tuple(input.shape), count, place.shared_dims, is_placed)
            self.records.setdefault(key, (kind, use.shape))
            self._judge(forward, layout, use)
        if self._has_gradient and not torch.is_grad_enabled():
            function = own_recomputation()
            # A layer of ours refuses to be run again in backward; torch's would draw another mask.
            if function is not None and not isinstance(dict(named(forward.root)).get(layout.path), HasKey):
                self._add(layout.path, "recomputation", function[1], function[0])

    def _judge(self, forward: Any, layout: Layout, use: ObservedUse | None) -> None:
        """Judge where a site's samples lie, from two trials, or from one and the forward itself."""
        key = layout.path, layout.sample_dim
        if key in self.placements:
            return
        is_given = layout.path in self._sample_dims
        trials = [trial.get(key, []) for trial in self._trials]
        pairs = list(zip(*trials, strict=False))
        if use is not None and (use.is_placed or layout.window is not None):
            found = Placement("given", "window")
        elif use is not None and layout.sample_dim is None and set(use.shape) <= {1}:
            found = Placement("shown", "one decision for all samples")
        elif len(self._trials) == 1 and use is not None and pairs:
            found = judge(layout, is_given, pairs[0][0], use)
        elif len(self._trials) == 2 and pairs:
            judged = [judge(layout, is_given, *pair) for pair in pairs]
            if not self._draws and _follows_samples(*trials):
                judged.append(Placement("refused", _uses_vary(trials[0], trials[1])))
            found = min(judged, key=lambda placement: ("refused", "assumed", "given", "shown").index(placement.status))
        elif not self._why and not self._trials:
            found = Placement("shown", f"dimension {layout.sample_dim}, through rowwise layers alone")
        else:
            found = Placement("given" if is_given else "assumed", self._why or "no trial reached the site")
        self.placements[key] = found
        if found.status == "refused":
            forward.refused = {**forward.refused, key: found.reason}

    def _add(self, path: str, kind: str, where: str, name: str) -> None:
        """Record a place that is not pinned."""
        reasons = {
            "draw": f"{name} draws random numbers of torch's generators",
            "python": "random numbers of Python's generators are drawn",
            "numpy": "random numbers of NumPy's generators are drawn",
            "recomputation": f"dropout runs in {name}, an autograd Function; if its backward runs the layer again, use "
            "torch.utils.checkpoint",
        }
        fix = "" if kind == "recomputation" else "; draw from a key: puredrop.nn.LayerDrop, DropPath, or keep_mask"
        if kind != "recomputation" and forgets_generators():
            fix += " (and torch.utils.checkpoint with preserve_rng_state=False draws others in backward)"
        self.unpinned.setdefault((path, kind, where), Unpinned(path, kind, where, reasons[kind] + fix))

    def leave(self, depth: int) -> None:
        """Stop watching."""
        if self._watch is not None and depth <= (self._depth or 0):
            watch, self._watch = self._watch, None
            watch.__exit__(None, None, None)

    def abandon(self) -> None:
        """Forget a forward that failed; the next is examined."""
        self.leave(0)
        self._depth = None
        self.unpinned.clear()
        self.records.clear()

    def conclude(self, forward: Any) -> None:
        """Warn of what is not pinned, or refuse it."""
        if self.is_done or self._depth is None:
            return
        self._name_layers(forward)
        if self._is_strict:
            try:
                self._refuse()
            except (RuntimeError, ValueError):
                self.abandon()
                raise
        self.is_done = True
        self._trials = []
        if not self._is_strict:
            forward.observer = None
        if self.unpinned:
            places = "\n".join(f"- {place}" for place in self.unpinned.values())
            warnings.warn(f"reproducible: not pinned:\n{places}", UnpinnedWarning, stacklevel=2)

    def _name_layers(self, forward: Any) -> None:
        """Name the layers of other libraries that draw by themselves, reached or not."""
        for path, module in named(forward.root):
            if isinstance(module, HasKey) or not holds_dropout(module) or _is_torchs(module):
                continue
            fix = "puredrop.convert(model) first" if as_ours(module) is not None else "use puredrop.nn.DropPath"
            draws = [key for key in self.unpinned if key[0] == path and key[1] == "draw"]
            if draws or (rate_of(module) and as_ours(module) is not None and module.training):
                for key in draws:
                    del self.unpinned[key]
                where = draws[0][2] if draws else "?"
                reason = f"{kind_of(module)} of {type(module).__module__} draws its own random numbers; {fix}"
                self.unpinned[path, "layer", where] = Unpinned(path, "layer", where, reason)

    def _refuse(self) -> None:
        """Raise an error for what is not pinned or not shown."""
        if self.unpinned:
            raise RuntimeError(
                "reproducible(..., strict=True): not pinned: " + "; ".join(map(str, self.unpinned.values()))
            )
        if self.unsearched:
            raise RuntimeError(f"reproducible(..., strict=True): {self.unsearched}")
        for (path, dim), placement in self.placements.items():
            self._check_placement(path, dim, placement)

    def _check_late(self, key: tuple[str, int | None]) -> None:
        """Refuse a site that the examined forward did not reach and no trial showed."""
        path, dim = key
        self._check_placement(
            path, dim, self.placements.get(key) or Placement("assumed", "the first forward missed it")
        )

    def _check_placement(self, path: str, dim: int | None, placement: Placement) -> None:
        if placement.status not in ("shown", "given"):
            raise ValueError(
                f"reproducible(..., strict=True): site {path!r}: that its samples lie in dimension {dim} is "
                f"{placement.status}: {placement.reason}; say where: sample_dims={{{path!r}: {dim}}}"
            )

    def report(self, forward: Any) -> PinReport:
        """Return the report of what is known so far."""
        kinds = {path: kind_of(module) for path, module in named(forward.root)}
        sites = {(site.layout.path, site.layout.sample_dim): site.layout for site in forward.keys}
        known = {path for path, _ in (*self.records, *self.placements)}
        rows = []
        for key, layout in sites.items():
            if key not in self.placements and key not in self.records and (layout.path in known or ":" in layout.path):
                continue  # made for another sample dimension or by a call that does not drop
            kind, shape = self.records.get(key, ("", None))
            placement = self.placements.get(key) or Placement("not reached")
            kind = kinds.get(layout.path) or layout.path.rpartition(":")[2].rstrip("0123456789") or kind
            rows.append(SiteRecord(layout.path, kind, shape, layout.sample_dim, placement.status, placement.reason))
        note = self.unsearched if self.is_done else "no forward in training mode has been examined yet"
        return PinReport(rows, list(self.unpinned.values()), note)


def _follows_samples(first: list[ObservedUse], second: list[ObservedUse]) -> bool:
    """Return whether a site is used once more, or equally many times more, for each further sample."""
    more, samples = len(second) - len(first), second[0].samples - first[0].samples
    return len(first) >= first[0].samples and more > 0 and more % samples == 0


def _uses_vary(first: list[ObservedUse], second: list[ObservedUse]) -> str:
    """Return why masks cannot follow samples at a site that is used more often for more samples."""
    return (
        f"the site is used {len(first)} times for {first[0].samples} samples and {len(second)} times for "
        f"{second[0].samples}, so that a use belongs to no sample for good, which sample_dims= cannot say; drop from "
        "all samples in one call"
    )


def _is_torchs(module: Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_sharded(module: Module) -> bool:
    return fsdp_mesh(module) is not None or "FullyShardedDataParallel" in type(module).__name__


def _shares_work() -> bool:
    """Return whether other processes may wait for this one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _holds_others(value: Any) -> bool:
    """Return whether an argument holds tensors whose sizes do not say where samples lie."""
    if isinstance(value, Tensor):
        return bool(value.is_nested) or is_spread(value) or value.layout is not torch.strided
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return True
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return isinstance(value, (tuple, list)) and any(map(_holds_others, value))
