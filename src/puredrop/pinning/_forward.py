"""Forward of a pinned model: the modules that run in it, and the functions that they call."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from puredrop._torch import backward_number, is_exporting, is_recorded
from puredrop._torch_transforms import outside_transforms
from puredrop.functional.interception import InterceptedCall, Interception
from puredrop.inspection.frames import Frame, Hooks
from puredrop.inspection.state import logical_thread, opening
from puredrop.inspection.watch import positions
from puredrop.ops import Place, active
from puredrop.pinning._batches import Batches
from puredrop.pinning._forward_state import ForwardState, State, raise_now
from puredrop.pinning._mapping import check_opened, slices_of
from puredrop.pinning._ranks import holds_parts
from puredrop.pinning._recompute import watch_checkpoints
from puredrop.pinning._samples import count_of
from puredrop.pinning._sites import Keys, PinnedSite
from puredrop.rng import Key

__all__ = ["Forward"]

_CALL = Module.__call__.__code__  # shows on the stack what runs


class Forward(ForwardState):
    """Forward of one pinned model, and the key source of functions that are called in it.

    Args:
        root: the model.
        keys: keys of the model's sites.
        batches: counter of the model's samples.
        hooks: hooks on modules that may call functions.
        droppers: modules of the model that are sites.
        sample_dim: dimension of the samples in the model's inputs.
        watches: whether the model calls functional dropout of torch's; None if the first forward has to show it.
    """

    def __init__(
        self,
        root: Module,
        keys: Keys,
        batches: Batches,
        hooks: Hooks,
        droppers: list[Module],
        sample_dim: int,
        watches: bool | None,
    ) -> None:
        self.is_copy = False
        self.root = root
        self.keys = keys
        self.batches = batches
        self.hooks = hooks
        self.droppers = droppers
        self.sample_dim = sample_dim
        self._is_prepared = False
        self._frames: list[Frame] = []
        self._modes: list[Interception | None] = []
        self._watches = watches
        self._needs_hooks = True
        self._called = False  # whether the first forward called one of our functions
        self._served = False  # whether it called functional dropout of torch's
        self._position: tuple[bytes, ...] | None = None
        self._root_site = keys.site("", (), sample_dim) if root in droppers else None
        self._error: BaseException | None = None  # the exception that was being handled when the forward was opened
        watch_checkpoints(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        """Pin the copied model on its own; a part that is copied alone is not pinned."""
        new = Forward.__new__(Forward)
        memo[id(self)] = new
        new.is_released = self.is_released or id(self.root) not in memo
        if new.is_released:
            return new
        batches = self.batches
        for shared in (batches.mesh, batches.group, batches.ranks):
            memo[id(shared)] = shared  # a copy shares the processes
        running = {"owner", "thread", "depth", "_frames", "_modes", "_error", "outer"}  # of a forward that is open
        vars(new).update(
            copy.deepcopy({name: value for name, value in vars(self).items() if name not in running}, memo)
        )
        new.is_copy, new._frames, new._modes, new._error = True, [], [], None
        watch_checkpoints(new)
        return new

    def _prepare(self, is_spread: bool) -> None:
        """Find out how the model lies on processes, which is known only when it runs."""
        if not self._is_prepared:
            self.is_parallel = holds_parts(self.root)
            self._is_prepared = True
        if not is_spread:
            self.batches.find_ranks(self.root)

    def before(self, module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Open a forward, as a hook on the model.

        Compilers trace this hook, so that a model in eval mode is one program and can be exported.
        """
        if self.is_released or (self.depth == 0 and not self.hooks.are_on and not self._drops()):
            return
        if is_exporting() or is_recorded():
            self.refuse_tracer()
        self.open_by_hook(args, kwargs)

    def after(self, *_: Any) -> None:
        """Close a forward, as a hook on the model that runs also after an error."""
        if self.depth:
            self.close_by_hook()

    def refuse_tracer(self) -> None:
        """Refuse tracing in training mode: a recorded program would keep this step's keys."""
        if self._drops():
            raise_now(
                "a pinned model cannot be exported in training mode: the program would hold this step's keys for ever; "
                "call model.eval() first, or run.release()"
            )

    def open_by_hook(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Open a forward, or within an open one read its number of samples."""
        self.end_interrupted(1)
        if self.depth == 0:
            if self._drops():
                self.open(*count_of(self.sample_dim, args, kwargs), args, kwargs, is_call=True)
            else:
                self.hooks.take_off(self)
            return
        self.check_thread()
        if self.observer is not None:
            self.observer.begin(self, args, kwargs)
        self.depth += 1
        self._frames.append(Frame("", self._root_site))
        slices = slices_of(self.root, args, kwargs, self.batches.ids)
        check_opened(slices, self.slices)
        if self.samples.count is None:
            with outside_transforms():
                self.samples = self.batches.begin(*count_of(self.sample_dim, args, kwargs), slices)

    def close_by_hook(self) -> None:
        """Close the innermost open forward, if it is this thread's."""
        if not self.is_here:
            return
        if self.depth > 1:
            if self.observer is not None:
                self.observer.leave(self.depth)
            self.depth -= 1
            self._frames.pop()
        else:
            self.close()

    def _drops(self) -> bool:
        """Return whether anything is in training mode."""
        return self.root.training or any(module.training for module in self.droppers)

    def open(
        self,
        count: int | None,
        is_spread: bool = False,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        *,
        is_call: bool = False,
    ) -> None:
        """Begin a forward, with the uses of all sites at 0.

        Args:
            count: number of its samples on this process, None if unknown.
            is_spread: whether the inputs hold the samples of all processes.
            args, kwargs: its inputs.
            is_call: whether a call of the model opens it, and not code by hand.

        Raises:
            RuntimeError: if a forward is open, also in another thread, or if this is a recomputation of an unknown
                forward.
        """
        self.end_interrupted(0)
        self.claim()
        if self.depth:
            raise RuntimeError(
                "a forward of the pinned model is opened by hand while another is open; close that first"
            )
        try:
            if self.observer is not None and is_call:
                self.observer.begin(self, args, kwargs)
            self._begin(count, is_spread, args, kwargs)
            self._start()
        except BaseException:
            if self.observer is not None:
                self.observer.abandon()
            self.give_up()
            raise

    def _begin(self, count: int | None, is_spread: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find the forward's samples, and set the uses of all sites to 0."""
        opening(self)
        if backward_number() != -1 and not self.is_replayed:
            raise RuntimeError(
                "the pinned model is run in backward, but not by torch.utils.checkpoint, so the forward that it "
                "repeats is unknown; use torch.utils.checkpoint"
            )
        self.is_by_hand = False
        self.slices = slices_of(self.root, args, kwargs, self.batches.ids)
        with outside_transforms():
            self._prepare(is_spread)
            self.samples = self.batches.begin(count, is_spread, self.slices)
            if self._watches is not True:
                self._position = positions()
        self.thread, self.number = logical_thread.number, self.number + 1
        if self.refuses_all:
            self.check_placements()
        for site in self.keys:
            site.uses = 0
        if self._needs_hooks and not self.hooks.are_on:
            self.hooks.put_on(self)

    def _start(self) -> None:
        """Become the source of keys, and serve torch's functional dropout."""
        self.has_dropped = False
        self._error = sys.exc_info()[1]
        self._frames = [Frame("", self._root_site)]
        self.outer, active.source = active.source, self
        self.depth = 1
        mode = Interception(self._serve) if self._watches is not False else None
        self._modes.append(mode)
        if mode is not None:
            mode.__enter__()

    def close(self, failed: bool = False) -> None:
        """End the forward; one that failed is not counted."""
        if self.observer is not None:
            self.observer.leave(0)
        mode = self._modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)
        active.source = self.outer
        self.depth, self.outer, self.slices = 0, None, None
        self.give_up()
        failed = failed or sys.exc_info()[1] is not self._error
        self._error = None
        if failed:
            if self.observer is not None:
                self.observer.abandon()
            return
        if self.observer is not None and not self.is_replayed:
            self.observer.conclude(self)
        if self.has_dropped:
            self.batches.end(self.samples)
        if not self.is_replayed:
            with outside_transforms():
                self._look_back()

    def end_interrupted(self, calls: int) -> None:
        """Close a forward that was interrupted: by Ctrl-C, at which torch runs no hooks, or by the end of its thread.

        Args:
            calls: number of calls of the model on this thread's stack that belong to no open forward.
        """
        owner = vars(self).get("owner")
        if not self.depth or self.is_replayed or self.is_compiled or self.is_by_hand or owner is None:
            return
        if owner is threading.current_thread():
            frame, running = inspect.currentframe(), 0
            while frame is not None:
                running += frame.f_code is _CALL and frame.f_locals.get("self") is self.root
                frame = frame.f_back
            if running <= calls:
                self.close(failed=True)
        elif not owner.is_alive():  # its mode of functions went with the thread
            self._modes, self.depth, self.outer = [], 0, None
            vars(self).pop("owner", None)

    def _look_back(self) -> None:
        """Decide after the first forward whether functional dropout has to be watched for."""
        self.keys.check_names()
        if self._watches is True:
            return
        has_drawn = positions() != self._position
        if self._watches is None:
            # Compiled code keeps the mode: dropping it would mean another program, and it costs nothing there.
            self._watches = self._served or has_drawn or self.is_compiled
            self._needs_hooks = self._watches or self._called
            if not self._needs_hooks:
                self.hooks.take_off(self)
        elif has_drawn:
            raise RuntimeError(
                "this forward drew random numbers, which the first one did not; if that was functional dropout of "
                "torch's, its mask was not pinned: pass reproducible(..., functional=True), which also allows other "
                "threads to draw random numbers meanwhile"
            )

    def enter(self, path: str, is_site: bool, module: Module, inputs: tuple[Any, ...]) -> None:
        """Record that a module runs."""
        if self.depth and (torch.compiler.is_compiling() or self.is_here):
            self._frames.append(Frame(path, self.keys.site(path, (), self.sample_dim) if is_site else None))

    def leave(self) -> None:
        """Record that the current module has returned."""
        if self.depth and (torch.compiler.is_compiling() or self.is_here):
            self._frames.pop()

    def _serve(self, call: InterceptedCall) -> Any:
        """Serve a call of torch's functional dropout by our function."""
        if call.kind == "attention" and call.training and not call.p:
            return call.with_key(None)  # attention without dropout is not a site
        if call.training:
            self._served = True
        return call.with_key(self._site_of(call.kind))

    def _site_of(self, kind: str) -> PinnedSite:
        """Return the site of a function that is called."""
        frame = self._frames[-1]
        if frame.site is not None:
            site: PinnedSite = frame.site
            return site
        if not self.hooks.are_on:
            raise RuntimeError(
                f"{kind} was called as a function, which no forward before did, so the module around it is "
                "unknown; pass reproducible(..., functional=True)"
            )
        return self.keys.site(f"{frame.path}:{kind}{frame.count(kind)}", (), self.sample_dim)

    def resolve(self, kind: str, input: Tensor, place: Place) -> tuple[Key | Tensor, Place]:
        """Return key and place of one of our functions that is called without a key."""
        self._called = True
        return self._site_of(kind).resolve(kind, input, place)

    def snapshot(self) -> State:
        """Return the state with which a region of the forward begins."""
        frames = [frame.copy() for frame in self._frames]
        uses = {site: site.uses for site in list(self.keys) if site.uses}  # another thread may make sites meanwhile
        ids = self.batches.ids, self.batches.is_stale
        return State(
            self.keys.step, self.batches.tally, ids, self.samples, self.depth, uses, frames, self.outer, self.number
        )

    @contextmanager
    def replayed(self, state: State) -> Iterator[None]:
        """Run a region again from the state with which it began."""
        if self.is_released:
            with self._refusing(state):
                yield
            return
        self.claim(state)
        now, was_replayed, has_dropped, thread = self.snapshot(), self.is_replayed, self.has_dropped, self.thread
        self.restore(state)
        self.is_replayed, self.thread = True, logical_thread.number
        mode = Interception(self._serve) if state.depth and self._watches is not False else None
        try:
            if mode is not None:
                mode.__enter__()
            yield
        finally:
            if mode is not None:
                mode.__exit__(None, None, None)
            self.restore(now)
            self.is_replayed, self.has_dropped, self.thread = was_replayed, has_dropped, thread
            if not self.depth:
                self.give_up()

    @contextmanager
    def _refusing(self, state: State) -> Iterator[None]:
        """Refuse a region of a released model's forward, or one that runs the model."""

        def refuse(*_: Any) -> None:
            raise RuntimeError(
                "a checkpointed region is run again after its model was released; release it after the backward"
            )

        if state.depth:
            refuse()
        hook = self.root.register_forward_pre_hook(refuse)
        try:
            yield
        finally:
            hook.remove()

    def restore(self, state: State) -> None:
        """Return to a state."""
        if state.step != self.keys.step:
            self.keys.go_to(state.step)
        self.batches.tally = state.tally
        self.batches.ids, self.batches.is_stale = state.ids
        self.samples, self.depth, self.outer = state.samples, state.depth, state.outer
        for site in self.keys:
            site.uses = state.uses.get(site, 0)
        self._frames = [frame.copy() for frame in state.frames]
