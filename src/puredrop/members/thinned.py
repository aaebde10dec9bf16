"""Members on compacted weights: in a run of layers each member computes only kept units, which stay in the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from puredrop import functional, nn, ops
from puredrop._torch import transforms_active, without_modes
from puredrop.compact.functions import LayerCall
from puredrop.compact.kept import Kept
from puredrop.compact.panels import gather
from puredrop.members.masks import DrawnMasks
from puredrop.members.sites import MemberForward, MemberFunction, SiteUse, applied
from puredrop.thinning import Chain, find_chains

__all__ = ["CACHE", "CompactRuns", "RunStep", "runs"]

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
CACHE = 2**18
"""Numbers of a layer's input for the members at once: 1 MB, so that the output of one layer is in the cache for the
next. With all members of a chunk at once, 784-512-256-10 with 1024 rows takes 1.8 times as long."""


class RunStep(NamedTuple):
    """A site, the only layer that reads its output, and the functions before the next step.

    Args:
        site, reader: paths.
        before: path of the layer whose output, through elementwise functions, the site alone reads; None for another.
        after: functions of one tensor, elementwise; none after the last step.
    """

    site: str
    reader: str
    before: str | None
    after: tuple[Callable[[Any], Any], ...]


def runs(root: Module) -> list[list[RunStep]]:
    """Return the runs of a model: site, layer, activation, site, layer, ..., each read by the next one alone."""
    chains = [chain for chain in find_chains(root).chains if chain.sample_dim == 0]
    readers = Counter(path for chain in chains for path in chain.after)
    sites = Counter(chain.path for chain in chains)

    def is_simple(chain: Chain) -> bool:
        return sites[chain.path] == 1 and len(chain.after) == 1 and all(readers[path] == 1 for path in chain.after)

    simple = {chain.path: chain for chain in chains if is_simple(chain)}
    reader_of = {path: next(iter(chain.after)) for path, chain in simple.items()}
    site_after = {chain.before_path: path for path, chain in simple.items() if chain.before}
    last = set(reader_of.values())
    found = []
    for path, chain in simple.items():
        if chain.before_path in last:
            continue  # not the first of its run
        steps, at = [], path
        while True:
            following = site_after.get(reader_of[at])
            steps.append(
                RunStep(
                    at, reader_of[at], simple[at].before_path or None, simple[following].between if following else ()
                )
            )
            if following is None:
                break
            at = following
        found.append(steps)
    return found


class CompactRuns:
    """The runs of an instrumented model: the first site computes the whole run, the layers after it pass it on.

    Outside of vmap the layers run as ever.

    Args:
        steps: of each run.
        moment: returns the running forward.
        cache: numbers of a layer's input that members have at once.
    """

    def __init__(self, steps: list[list[RunStep]], moment: Callable[[], MemberForward], cache: int) -> None:
        self._runs = steps
        self._moment = moment
        self._cache = cache
        self._results: dict[str, Tensor] = {}
        self._passing: set[str] = set()

    def begin(self) -> None:
        """Forget the results of an earlier forward."""
        self._results.clear()
        self._passing.clear()

    def install(self, model: Module, override: Callable[[Module, Any], None]) -> None:
        """Give sites and their readers another forward."""
        for steps in self._runs:
            layers = [(model.get_submodule(step.site), model.get_submodule(step.reader)) for step in steps]
            for step, (site, reader) in zip(steps, layers, strict=True):
                is_first = step is steps[0]
                override(site, self._start(steps, layers) if is_first else self._pass(step.site))
                override(reader, self._end(step.reader) if step is steps[-1] else self._pass(step.reader))

    def _start(self, steps: list[RunStep], layers: list[tuple[Any, Any]]) -> Callable[[Any, Tensor], Tensor]:
        def start(site: Any, input: Tensor) -> Tensor:
            moment = self._moment()
            if not _fits(site, input, moment.rows) or any(not 0 < float(dropout.p) < 1 for dropout, _ in layers):
                output: Tensor = type(site).forward(site, input)
                return output
            shape, stages = list(input.shape), []
            for step, (dropout, reader) in zip(steps, layers, strict=True):
                stages.append(_stage(moment, step, dropout, reader, shape))
                shape = _shape_behind(reader, shape)
                self._passing |= {step.site, step.reader}
            # Nothing in a run drops by a function: the mode that finds such calls would only slow each of them.
            with without_modes():
                self._results[steps[-1].reader] = _RunFunction.apply(input, moment.member, moment, stages, self._cache)
            # Later layers are called all the same, so that their hooks run; their result is known here already.
            # They pass this tensor on; NaN, so that a wrong reader would show it.
            return input.new_full(input.shape, torch.nan)

        return start

    def _pass(self, path: str) -> Callable[[Any, Tensor], Tensor]:
        def forward(layer: Any, input: Tensor) -> Tensor:
            output: Tensor = input if path in self._passing else type(layer).forward(layer, input)
            return output

        return forward

    def _end(self, path: str) -> Callable[[Any, Tensor], Tensor]:
        def forward(layer: Any, input: Tensor) -> Tensor:
            result = self._results.pop(path, None)
            output: Tensor = type(layer).forward(layer, input) if result is None else result
            return output

        return forward


def _fits(site: Any, input: Tensor, rows: int) -> bool:
    """Return whether a run can be thinned: members are batched, with one decision per unit, in float32 or float64."""
    rank = 2 + (1 + _CHANNELS.index(type(site)) if isinstance(site, _CHANNELS) else 0)
    return (
        transforms_active()
        and input.dim() == rank
        and input.shape[0] == rows
        and not getattr(site, "shared_dims", ())
        and input.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(input.device.type)
    )


class _Stage(NamedTuple):
    """A step of one forward.

    Args:
        use: of the site.
        layer: the reader.
        weight, bias: of it.
        after: activations.
    """

    use: SiteUse
    layer: Any
    weight: Tensor
    bias: Tensor | None
    after: tuple[Callable[[Any], Any], ...]


def _stage(moment: MemberForward, step: RunStep, site: Any, reader: Any, shape: list[int]) -> _Stage:
    if shape[1] != reader.weight.shape[1]:
        raise RuntimeError(f"{step.reader} has an input of shape {tuple(shape)} and {reader.weight.shape[1]} features")
    is_channel = isinstance(site, _CHANNELS)
    use = SiteUse(
        step.site, moment.begin(step.site), float(site.p), (1, shape[1], *[1] * (len(shape) - 2) * is_channel)
    )
    moment.uses.append(use)
    return _Stage(use, reader, reader.weight, reader.bias, step.after)


def _shape_behind(layer: Any, shape: list[int]) -> list[int]:
    """Return the shape of a layer's output; of a convolution's maps only the number of dimensions is right."""
    return [shape[0], layer.weight.shape[0], *shape[2:]]


class _RunFunction(MemberFunction):
    """A run of layers, for all members of a chunk."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        member: Tensor,
        moment: MemberForward,
        stages: list[_Stage],
        cache: int,
    ) -> tuple[Tensor, int]:
        x = input.unsqueeze(0) if in_dims[0] is None else input.movedim(in_dims[0], 0)
        compute = (_SharedMaskRun if moment.first is None else _RowMaskRun)(moment, stages, x)
        size = max(1, cache // max(1, x[0].numel()))
        output: Tensor | None = None
        for first in range(0, info.batch_size, size):
            part = compute(first, min(first + size, info.batch_size))
            if output is None:
                output = part.new_empty(info.batch_size, *part.shape[1:])
            output[first : first + size] = part
        assert output is not None
        return output, 0


class _SharedMaskRun:
    """A run of members on the units that they keep, which all rows share.

    Args:
        moment: the forward.
        stages: of the run.
        input: (members or 1, rows, units, ...).
    """

    def __init__(self, moment: MemberForward, stages: list[_Stage], input: Tensor) -> None:
        self._stages = stages
        self._input = input.contiguous()
        members = len(moment.members)
        self._whole: Tensor | None = None
        self._scratch: dict[int, Tensor] = {}
        self._panels, self._biases = [], []
        masks = [moment.keep(stage.use, input.device).flatten(1) for stage in stages]
        if len(input) == 1 and stages[0].use.p < 0.5 and isinstance(stages[0].layer, torch.nn.Linear):
            # Fewer units are dropped than kept: subtract them from the output of all units, which members share.
            first, masks[0] = stages[0], ~masks[0]
            scale = 1 / (1 - first.use.p)
            self._whole = torch.nn.functional.linear(self._input[0] * scale, first.weight, first.bias)
        self._kept = [Kept.from_mask(mask) for mask in masks]
        for stage, kept, rows in zip(stages, self._kept, [*self._kept[1:], None], strict=True):
            call = LayerCall(kept, rows, 1 / (1 - stage.use.p))
            self._panels.append(call.panels(stage.weight, members))
            self._biases.append(None if stage.bias is None else call.biases(stage.bias, members))

    def __call__(self, first: int, last: int) -> Tensor:
        """Return the outputs (members, rows, ...) of the members first to last."""
        some = [kept.select(first, last) for kept in self._kept]
        x = self._gathered(some[0], first, last)
        for i, stage in enumerate(self._stages):
            height = some[i + 1].width if i + 1 < len(some) else stage.weight.shape[0]
            panels, biases = self._panels[i][first:last, :height, : some[i].width], self._biases[i]
            if i == 0 and self._whole is not None:
                x = self._less(x, panels, some[1] if len(some) > 1 else None)
            else:
                biases = None if biases is None else biases[first:last, :, :height]
                x = _layer(stage.layer, x, panels, biases, self._buffer(i, (*x.shape[:2], height), x))
            x = _apply_functions(x, stage.after)
        return x

    def _buffer(self, index: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer that is used again for each part: with fresh memory a product took 1.4 times as long."""
        size = torch.Size(shape).numel()
        buffer = self._scratch.get(index)
        if buffer is None or buffer.numel() < size:
            buffer = self._scratch[index] = like.new_empty(size)
        return buffer[:size].view(shape)

    def _less(self, x: Tensor, panels: Tensor, rows: Kept | None) -> Tensor:
        """Return the kept outputs from all units, less the contribution of the dropped units."""
        assert self._whole is not None
        count = len(x)
        if rows is None:
            whole = self._whole.expand(count, *self._whole.shape)
        else:
            height = len(self._whole)
            whole = gather(self._whole, height, rows, 1.0, self._buffer(-2, (count, height, rows.width), x))
            if count == 1:
                return whole[0].addmm_(x[0], panels[0].t(), alpha=-1).unsqueeze(0)
        return torch.baddbmm(whole, x, panels.transpose(1, 2), alpha=-1)

    def _gathered(self, kept: Kept, first: int, last: int) -> Tensor:
        rows = self._input.shape[1]
        is_common = len(self._input) == 1
        flat = (self._input if is_common else self._input[first:last]).flatten(0, 1)
        buffer = self._buffer(-1, (last - first, rows, kept.width, *flat.shape[2:]), flat)
        return gather(flat, rows, kept, 1.0, buffer, step=0 if is_common else rows)


class _RowMaskRun:
    """A run of members whose rows have masks of their own, on whole layers; arguments as for `_SharedMaskRun`."""

    def __init__(self, moment: MemberForward, stages: list[_Stage], input: Tensor) -> None:
        self._moment = moment
        self._stages = stages
        self._input = input

    def __call__(self, first: int, last: int) -> Tensor:
        """Return the outputs (members, rows, ...) of the members first to last."""
        return torch.stack([self._run_member(i) for i in range(first, last)])

    def _run_member(self, i: int) -> Tensor:
        x = self._input[0 if len(self._input) == 1 else i]
        for stage in self._stages:
            x = self._dropped(x, stage.use, self._moment.members[i])
            x = _layer(stage.layer, x.unsqueeze(0), stage.weight.unsqueeze(0), _row(stage.bias), None).squeeze(0)
            x = _apply_functions(x, stage.after)
        return x

    def _dropped(self, x: Tensor, use: SiteUse, member: int) -> Tensor:
        masks, first = self._moment.masks(use.path, use.call), self._moment.first or 0
        if isinstance(masks, DrawnMasks) and not masks.balanced:
            window = ops.Window((first + len(x), *x.shape[1:]), (first, *[0] * (x.dim() - 1)))
            shared = [d for d in range(2, x.dim()) if use.sizes[d] == 1]
            return functional.dropout(x, use.p, key=masks.key.fold_in(member), window=window, shared_dims=shared)
        keep = masks.keep([member], use.p, use.units * len(x), first * use.units, x.device)
        return applied(x, keep.view(len(x), *use.sizes[1:]), use.p)


def _row(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias[None, None]


def _layer(layer: Any, x: Tensor, weights: Tensor, biases: Tensor | None, buffer: Tensor | None) -> Tensor:
    """Apply a layer for several members.

    Args:
        layer: whose kind and rule it is.
        x: (members, rows, ...).
        weights, biases: (members, out, in, ...), (members, 1, out).
        buffer: memory for the output of a Linear layer.
    """
    if isinstance(layer, torch.nn.Linear):
        if len(x) == 1:  # a plain product is faster than a batch of one
            turned, out = weights[0].t(), None if buffer is None else buffer[0]
            product = (
                torch.mm(x[0], turned, out=out) if biases is None else torch.addmm(biases[0, 0], x[0], turned, out=out)
            )
            return product.unsqueeze(0)
        turned = weights.transpose(1, 2)
        return torch.bmm(x, turned, out=buffer) if biases is None else torch.baddbmm(biases, x, turned, out=buffer)
    convolve: Any = getattr(torch.nn.functional, f"conv{x.dim() - 3}d")
    member_biases = [None] * len(x) if biases is None else biases.flatten(1)
    return torch.stack(
        [
            convolve(member, weight, bias, layer.stride, layer.padding, layer.dilation)
            for member, weight, bias in zip(x, weights, member_biases, strict=True)
        ]
    )


def _apply_functions(x: Tensor, functions: tuple[Callable[[Any], Any], ...]) -> Tensor:
    """Apply elementwise functions, ReLU in place: nothing else reads x."""
    for function in functions:
        x = x.relu_() if isinstance(function, torch.nn.ReLU) else function(x)
    return x
