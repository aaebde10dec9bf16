"""Which changes of a training run leave its masks as they were, with torch's layer and with a pinned model; the price.

Usage: python benchmarks/reproducibility.py [--repeats N]. A case holds where every mask is that of the plain run: one
process, one batch, eager. Torch's layer is given what users give it, `manual_seed` at the start, alike everywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import puredrop

Masks = list[Tensor]
ROWS, WIDTH = 64, 32
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two dropouts, whose masks can be read where an input is not 0."""

    def __init__(self, around: Callable[..., Any] = lambda function, x: function(x)) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.one, self.two = nn.Dropout(0.5), nn.Dropout(0.2)
        self.around = around
        self.kept: Masks = []

    def block(self, x: Tensor) -> Tensor:
        """What may be checkpointed."""
        hidden: Tensor = self.one(torch.tanh(self.first(x)))
        output: Tensor = self.two(torch.tanh(self.last(hidden)))
        self.kept += [hidden.detach() != 0, output.detach() != 0]
        return output

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        output: Tensor = self.around(self.block, x)
        return output


class Trial:
    """A model at the start of its run, pinned or not."""

    def __init__(self, pinned: bool, model: nn.Module | None = None, group: Any = None) -> None:
        torch.manual_seed(0)
        self.model: Any = model or Net()
        self.run = puredrop.reproducible(self.model, dp_group=group) if pinned else None
        torch.manual_seed(1)

    def masks(self, *parts: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Masks:
        """Of one step, its forwards put together again."""
        self.model.kept.clear()
        for part in parts:
            (call or self.model)(part)
        forwards = [self.model.kept[i : i + 2] for i in range(0, len(self.model.kept), 2)]
        return [torch.cat(pieces) for pieces in zip(*forwards, strict=True)]

    def step(self) -> None:
        """To the next step."""
        if self.run is not None:
            self.run.advance()


def micro_batches(sizes: Sequence[int]) -> Callable[[bool], Masks]:
    """Gradient accumulation."""
    return lambda pinned: Trial(pinned).masks(*X.split(list(sizes)))


def another_order(pinned: bool) -> Masks:
    """The rows shuffled; a pinned model is told their names."""
    trial, order = Trial(pinned), torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    if trial.run is not None:
        trial.run.sample_ids = order
    return [mask[order.argsort()] for mask in trial.masks(X[order])]


def checkpointed(**named: Any) -> Callable[[bool], Masks]:
    """The masks of the recomputation, all of it."""
    named |= {} if named["use_reentrant"] else {"early_stop": False}

    def masks(pinned: bool) -> Masks:
        trial = Trial(pinned, Net(lambda function, x: checkpoint(function, x, **named)))
        torch.manual_seed(1)
        output = trial.model(X.clone().requires_grad_())
        trial.model.kept.clear()
        output.sum().backward()
        return list(trial.model.kept)

    return masks


def compiled(pinned: bool) -> Masks:
    """By Inductor."""
    trial = Trial(pinned)
    masks = []

    def look(x: Tensor) -> Tensor:
        hidden = trial.model.one(torch.tanh(trial.model.first(x)))
        return torch.stack([hidden, trial.model.two(torch.tanh(trial.model.last(hidden)))])

    trial.model.forward = look
    masks = torch.compile(trial.model)(X)
    return [mask.detach() != 0 for mask in masks]


def half(pinned: bool) -> Masks:
    """In bfloat16."""
    trial = Trial(pinned)
    trial.model.bfloat16()
    return trial.masks(X.bfloat16())


def extra_draw(pinned: bool) -> Masks:
    """Something else draws one number first."""
    trial = Trial(pinned)
    torch.rand(1)
    return trial.masks(X)


def second_step_after_restart(pinned: bool) -> Masks:
    """The second step, in a process that has not run the first; the step is what is restored."""
    trial = Trial(pinned)
    trial.step()
    return trial.masks(X)


def second_step(pinned: bool) -> Masks:
    """What that is compared with."""
    trial = Trial(pinned)
    trial.masks(X)
    trial.step()
    return trial.masks(X)


# What processes do: case -> what each sees, as part of the whole.
def data_parallel(pinned: bool) -> Masks:
    """A batch in as many parts."""
    rank, size = dist.get_rank(), dist.get_world_size()
    trial = Trial(pinned, group=dist.group.WORLD)
    part = X.chunk(size)[rank]
    return trial.masks(part, call=nn.parallel.DistributedDataParallel(trial.model))


def fully_sharded(pinned: bool) -> Masks:
    """FSDP 2."""
    from torch.distributed.fsdp import fully_shard

    trial = Trial(pinned, group=dist.group.WORLD)
    fully_shard(trial.model)
    return trial.masks(X.chunk(dist.get_world_size())[dist.get_rank()])


def columns(pinned: bool) -> Masks:
    """Tensor parallel: the columns of the first site, all of the second."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    rank, size = dist.get_rank(), dist.get_world_size()
    trial = Trial(False)
    mesh = init_device_mesh("cpu", (size,))
    parallelize_module(trial.model, mesh, {"first": ColwiseParallel(), "last": RowwiseParallel()})
    window = puredrop.Window((ROWS, WIDTH), (0, rank * WIDTH // size))
    if pinned:
        puredrop.reproducible(trial.model, windows={"one": window})
    return trial.masks(X)


PROCESSES = {"ddp": data_parallel, "fsdp": fully_sharded, "tp": columns}


def on_processes(case: str, size: int) -> Callable[[bool], Masks]:
    """Run a case under torchrun, and put together what the processes saw."""

    def masks(pinned: bool) -> Masks:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            subprocess.run(
                [*command, __file__, "--worker", case, str(int(pinned)), folder],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            parts = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]
        if case != "tp":
            return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        return [torch.cat([part[0] for part in parts], 1), parts[-1][1]]

    return masks


def worker(case: str, pinned: str, folder: str) -> None:
    """One process of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(PROCESSES[case](bool(int(pinned))), Path(folder) / f"{dist.get_rank()}.pt")
    dist.barrier()
    os._exit(0)  # gloo aborts a process now and then that takes itself down in order


def plain(pinned: bool) -> Masks:
    """One process, one batch, eager."""
    return Trial(pinned).masks(X)


CASES: dict[str, tuple[Callable[[bool], Masks], Callable[[bool], Masks]]] = {
    "again, the same seed": (plain, plain),
    "micro-batches 32 + 32": (micro_batches([32, 32]), plain),
    "micro-batches 48 + 16": (micro_batches([48, 16]), plain),
    "the rows in another order, with sample_ids": (another_order, plain),
    "checkpointing": (checkpointed(use_reentrant=False), plain),
    "checkpointing, reentrant": (checkpointed(use_reentrant=True), plain),
    "checkpointing, preserve_rng_state=False": (checkpointed(use_reentrant=False, preserve_rng_state=False), plain),
    "compiled": (compiled, plain),
    "bfloat16": (half, plain),
    "one more random number drawn": (extra_draw, plain),
    "restarted at the second step": (second_step_after_restart, second_step),
    "DDP on 2": (on_processes("ddp", 2), plain),
    "DDP on 4": (on_processes("ddp", 4), plain),
    "FSDP 2 on 2": (on_processes("fsdp", 2), plain),
    "tensor parallel on 2": (on_processes("tp", 2), plain),
}


def holds(case: str, pinned: bool) -> bool:
    """Whether a case has the masks of the run it is compared with."""
    found, expected = (function(pinned) for function in CASES[case])
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def matrix() -> None:
    """Print the cases."""
    print("| the run is changed: | torch.nn.Dropout | pinned |\n|---|---|---|")
    totals = [0, 0]
    for case in CASES:
        found = [holds(case, pinned) for pinned in (False, True)]
        totals = [total + one for total, one in zip(totals, found, strict=True)]
        print(f"| {case} | {' | '.join('same masks' if one else '**others**' for one in found)} |", flush=True)
    print(f"| of {len(CASES)} | {totals[0]} | {totals[1]} |")


def microseconds(function: Callable[[], Any], repeats: int) -> float:
    """The median of some rounds."""
    rounds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(50):
            function()
        rounds.append((time.perf_counter() - started) / 50 * 1e6)
    return statistics.median(rounds)


def cost(repeats: int) -> None:
    """Print what a pinned site costs over one that is not, in small models where nothing else takes time."""
    torch.set_num_threads(1)
    x, sites = torch.randn(16, 64), 20

    def stack(kind: Callable[[], nn.Module]) -> nn.Sequential:
        return nn.Sequential(*[kind() for _ in range(sites)])

    print("\n| a site and forward, us | not pinned | pinned | difference |\n|---|---|---|---|")

    def row(
        what: str, kind: Callable[[], nn.Module], act: Callable[[Any, nn.Module], Any], training: bool = True
    ) -> None:
        base, pinned = stack(kind).train(training), stack(kind).train(training)
        run = puredrop.reproducible(pinned)
        act(run, pinned)
        # In turns, so that what else the machine does meets both.
        pairs = [
            (microseconds(lambda: base(x), 1) / sites, microseconds(lambda: act(run, pinned), 1) / sites)
            for _ in range(repeats)
        ]
        one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        difference = statistics.median(b - a for a, b in pairs)
        print(f"| {what} | {one:.1f} | {other:.1f} | {difference:+.1f} |")

    def first_of_step(run: Any, model: nn.Module) -> None:
        run._forward.batches.begin_step()
        model(x)

    def with_step(run: Any, model: nn.Module) -> None:
        model(x)
        run.advance()

    ids = torch.arange(len(x))

    def with_ids(run: Any, model: nn.Module) -> None:
        run.sample_ids = ids
        model(x)

    def ours() -> nn.Module:
        return puredrop.nn.Dropout(0.5)

    row("our layer, the first forward of a step", ours, first_of_step)
    row("and the step after it", ours, with_step)
    row("our layer, a later micro-batch", ours, lambda run, model: model(x))
    row("our layer, with sample_ids", ours, with_ids)
    row("torch's layer, intercepted", lambda: nn.Dropout(0.5), first_of_step)
    row("another operation under interception (tanh)", lambda: nn.Tanh(), _watched)
    row("our layer in eval mode", ours, lambda run, model: model(x), training=False)


def _watched(run: Any, model: nn.Module) -> None:
    run._forward._watches = True
    model(torch.ones(16, 64))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=101, help="rounds of each timing (default: 101)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    print(f"puredrop {puredrop.__version__} ({puredrop.backend()}), torch {torch.__version__}\n")
    matrix()
    cost(arguments.repeats)


if __name__ == "__main__":
    main()
