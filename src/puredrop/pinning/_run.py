"""What `reproducible` returns: the step, the samples' names, and how they are saved and let go."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puredrop.nn.keyed import HasKey
from puredrop.pinning._batches import Tally
from puredrop.pinning._forward import Forward
from puredrop.pinning._hooks import remove
from puredrop.pinning._recompute import unwatch_checkpoints
from puredrop.pinning._samples import count_of
from puredrop.pinning._sites import PinnedSite, SharedSite

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Run", "let_go"]

_VERSION = 1


class Run:
    """A pinned model's step and samples.

    Every mask of the model is a function of seed, name, site, step, call and sample alone until `release`, or the end
    of the `with` block.

    Args:
        seed, name: as given to `reproducible`.
        forward: of the model.
    """

    def __init__(self, seed: int, name: str, forward: Forward) -> None:
        self.seed = seed
        self.name = name
        self._forward = forward
        self._attached: list[Any] = []

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"Run(seed={self.seed}{name}, step={self.step})"

    @property
    def step(self) -> int:
        """The step, from 0; setting it begins that step anew."""
        return self._forward.keys.step

    @step.setter
    def step(self, step: int) -> None:
        try:
            number = operator.index(step)
        except TypeError:
            raise TypeError(f"step is {step!r}; expected an integer, the number of steps taken so far") from None
        if number < 0:
            raise ValueError(f"step is {step}; expected 0 or more, the number of steps taken so far")
        if self._forward.depth:
            raise RuntimeError(
                "the step is changed while a forward is open; close it first, its samples are this step's"
            )
        self._forward.keys.go_to(number)
        self._forward.batches.begin_step()

    @property
    def sample_ids(self) -> Tensor | None:
        """Names of the samples of the forwards to come in this step, int64 (samples,), or None to count them."""
        return self._forward.batches.ids

    @sample_ids.setter
    def sample_ids(self, ids: Tensor | None) -> None:
        self._forward.batches.name(ids)

    @property
    def batch_size(self) -> int | None:
        """Samples of a whole step, on all processes; needed where samples are not the first dimension."""
        return self._forward.batches.batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        self._forward.batches.batch_size = size

    def advance(self) -> None:
        """Go to the next step.

        Raises:
            RuntimeError: if processes were given unequal numbers of samples without names.
        """
        self.check_batches()
        self.step += 1

    def check_batches(self) -> None:
        """Before weights change: that all processes were given as many samples in this step, or names for them.

        Raises:
            RuntimeError: on every process, if not.
        """
        self._forward.batches.check()

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Go to the next step whenever an optimizer has made one; a step skipped by a GradScaler is none.

        Args:
            optimizer: one, also where several share the model.

        Raises:
            ValueError: if one is attached already.
        """
        if self._attached:
            raise ValueError("an optimizer is attached already, and a second would advance the step twice; attach one")

        def check(*_: Any) -> None:
            self.check_batches()

        def advance(*_: Any) -> None:
            self.step += 1

        self._attached = [optimizer.register_step_pre_hook(check), optimizer.register_step_post_hook(advance)]
        return self

    @contextmanager
    def forward(self, batch_size: int | None = None, *, batch: Any = None) -> Iterator[None]:
        """Open a forward by hand, for code that calls parts of the model or calls it several times in one forward.

        Args:
            batch_size: samples of this forward on this process; if not given, as the model's inputs say, or
            batch: tensors, or containers of them, that hold so many.
        """
        forward = self._forward
        if batch is None:
            forward.open(batch_size)
        else:
            forward.open(*count_of(forward.sample_dim, [batch], {}))
        try:
            yield
        except BaseException:
            self._forward.close(failed=True)
            raise
        self._forward.close()

    def state_dict(self) -> dict[str, Any]:
        """What a run that resumes needs, as JSON can hold it; the same on every process."""
        tally = self._forward.batches.tally
        return {"version": _VERSION, "seed": self.seed, "name": self.name, "step": self.step, "tally": list(tally)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run was saved; in the middle of a step only on as many processes.

        Raises:
            ValueError: if it is the state of another seed or name, whose masks would be others.
        """
        for name in ("version", "seed", "name"):
            own = _VERSION if name == "version" else getattr(self, name)
            if state.get(name) != own:
                raise ValueError(
                    f"load_state_dict: {name} is {state.get(name)!r}, this run's is {own!r}; the masks would not go on "
                    "as they were (to take over the step alone: run.step = state['step'])"
                )
        self.step = state["step"]
        self._forward.batches.tally = Tally(*state["tally"])

    def release(self) -> None:
        """Let the model go: its layers draw keys from torch's generator again."""
        for handle in self._attached:
            handle.remove()
        self._attached = []
        let_go(self._forward)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def let_go(forward: Forward) -> None:
    """Take a model's hooks off, and its layers' sites."""
    for module in forward.root.modules():
        if isinstance(module, HasKey):
            vars(module)["key"] = _without(module.key, forward)
    if forward.hooks.are_on:
        forward.hooks.take_off(forward)
    remove(forward.root, lambda hook: getattr(hook, "__self__", None) is forward)
    unwatch_checkpoints(forward)
    forward.is_released = True


def _without(key: Any, forward: Forward) -> Any:
    """A layer's key when it belongs to a model no longer."""
    sites = key.sites if isinstance(key, SharedSite) else (key,)
    if not any(isinstance(site, PinnedSite) and site.keys.forward is forward for site in sites):
        return key
    return SharedSite.of([site for site in sites if site.keys.forward is not forward])
