"""Handle that `reproducible` returns: the step, the sample ids, their state, and the way to unpin the model."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from puredrop._torch import remove_hooks
from puredrop.nn.keyed import HasKey
from puredrop.pinning._batches import Tally
from puredrop.pinning._forward import Forward
from puredrop.pinning._recompute import unwatch_checkpoints
from puredrop.pinning._report import PinReport
from puredrop.pinning._samples import count_of
from puredrop.pinning._sites import PinnedSite, SharedSite

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Run", "unpin"]

_FORMAT = 1


class Run:
    """Handle of a pinned model: its step and the ids of its samples.

    `puredrop.reproducible` makes it. Every mask of the model is a function of seed, name, site, step, call and sample
    alone until `release`, or the end of the `with` block.

    Args:
        seed: the seed of all masks.
        name: text that tells models with one seed apart.
        forward: the forward of the pinned model.

    >>> import puredrop
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    >>> with puredrop.reproducible(model, seed=1) as run:
    ...     first = model(torch.ones(2, 4))
    ...     run.advance()
    >>> run
    Run(seed=1, step=1)
    """

    def __init__(self, seed: int, name: str, forward: Forward) -> None:
        self.seed = seed
        self.name = name
        self._forward = forward
        self._attached: list[Any] = []

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"Run(seed={self.seed}{name}, step={self.step})"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to be called like the model."""
        raise TypeError(
            "this is the run that puredrop.reproducible returned, not the model; keep both: "
            "run = puredrop.reproducible(model), then call model(...) as before"
        )

    @property
    def step(self) -> int:
        """Number of the present step, from 0; setting it begins that step anew."""
        return self._forward.keys.step

    @step.setter
    def step(self, step: int) -> None:
        try:
            number = operator.index(step)
        except TypeError:
            raise TypeError(f"step is {step!r}; expected an integer, the number of steps taken so far") from None
        if number < 0:
            raise ValueError(f"step is {step}; expected 0 or more, the number of steps taken so far")
        self._forward.end_interrupted(0)
        if self._forward.depth:
            raise RuntimeError(
                "step is set while a forward is open, whose samples belong to the old step; close the forward first"
            )
        self._forward.keys.go_to(number)
        self._forward.batches.begin_step()

    @property
    def sample_ids(self) -> Tensor | None:
        """Ids of the samples of the next forwards in this step, int64 (samples,); None counts the samples instead."""
        return self._forward.batches.ids

    @sample_ids.setter
    def sample_ids(self, ids: Tensor | None) -> None:
        self._forward.batches.set_ids(ids)

    @property
    def batch_size(self) -> int | None:
        """Number of samples of a whole step on all processes, or None.

        Set it before the first forward of a step if samples are not in the first dimension.
        """
        return self._forward.batches.batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        self._forward.batches.batch_size = size

    @property
    def report(self) -> PinReport:
        """Report of the pinned sites, where their samples lie, and what is not pinned, after the first forward."""
        report: PinReport = self._forward.examination.report(self._forward)
        return report

    def advance(self) -> None:
        """Advance to the next step.

        Raises:
            RuntimeError: on every process, if processes got different numbers of samples without ids.
        """
        self.check_batches()
        self.step += 1

    def check_batches(self) -> None:
        """Check that all processes got equally many samples in this step, or ids for them.

        `attach` calls it before the optimizer changes the weights.

        Raises:
            RuntimeError: on every process, if they did not.
        """
        self._forward.batches.check()

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Advance to the next step after each step of an optimizer; a step that a GradScaler skips does not count.

        Args:
            optimizer: the optimizer; if several train the model, one of them.

        Returns:
            The run itself.

        Raises:
            ValueError: if an optimizer is attached already.
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
        """Open a forward by hand, for code that calls parts of the model, or calls it several times as one forward.

        Args:
            batch_size: number of samples of this forward on this process; if not given, the model's inputs say it.
            batch: tensors, or containers of them, from which the number is read instead.

        Raises:
            RuntimeError: if a forward is open already.
        """
        forward = self._forward
        if batch is None:
            forward.open(batch_size)
        else:
            forward.open(*count_of(forward.sample_dim, [batch], {}))
        forward.is_by_hand = True
        try:
            yield
        except BaseException:
            self._forward.close(failed=True)
            raise
        self._forward.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming, which JSON can hold; it is the same on every process."""
        tally = self._forward.batches.tally
        return {"format": _FORMAT, "seed": self.seed, "name": self.name, "step": self.step, "tally": list(tally)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a run was saved; in the middle of a step only on the same number of processes.

        Args:
            state: a dictionary from `state_dict`.

        Raises:
            ValueError: if the state has another format, seed or name, so that the masks would be others; or if it is
                not whole.
            TypeError: if the state is no dictionary.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: state is {type(state).__name__}; expected what state_dict gave")
        # The first states named their format "version".
        number = "version" if "version" in state and "format" not in state else "format"
        for name, expected in ((number, _FORMAT), ("seed", self.seed), ("name", self.name)):
            if state.get(name) != expected:
                raise ValueError(
                    f"load_state_dict: {name} is {state.get(name)!r}, this run's is {expected!r}; the masks would not "
                    "continue as they were (to take over the step alone: run.step = state['step'])"
                )
        try:
            step, tally = state["step"], Tally(*state["tally"])
        except (LookupError, TypeError) as error:
            raise ValueError(
                f"load_state_dict: the state holds {', '.join(map(str, state))}; expected what state_dict gave, whole "
                f"({type(error).__name__}: {error})"
            ) from error
        self.step = step
        self._forward.batches.tally = tally

    def release(self) -> None:
        """Unpin the model: its layers draw keys from torch's generator again."""
        for handle in self._attached:
            handle.remove()
        self._attached = []
        unpin(self._forward)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def unpin(forward: Forward) -> None:
    """Remove a model's hooks, and the sites from its layers."""
    for module in forward.root.modules():
        if isinstance(module, HasKey):
            vars(module)["key"] = _without(module.key, forward)
    if forward.hooks.are_on:
        forward.hooks.take_off(forward)
    remove_hooks(forward.root, lambda hook: getattr(hook, "__self__", None) is forward)
    unwatch_checkpoints(forward)
    forward.is_released = True


def _without(key: Any, forward: Forward) -> Any:
    """Return a layer's key without the site of a model that is unpinned."""
    sites = key.sites if isinstance(key, SharedSite) else (key,)
    if not any(isinstance(site, PinnedSite) and site.keys.forward is forward for site in sites):
        return key
    return SharedSite.of([site for site in sites if site.keys.forward is not forward])
