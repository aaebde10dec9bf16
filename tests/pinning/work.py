"""What each process does: `work.py FOLDER CASE...` by torchrun writes what rank N saw to FOLDER/CASE-N.pt."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from nets import MLP, Masks, Net
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import puredrop

SEED, STEPS, MICRO, ROWS = 6, 3, 2, 16  # rows: of one micro-batch, on all processes together


def net(kind=Net):
    torch.manual_seed(0)
    return kind()


def batch(step, kind=Net, rows=MICRO * ROWS):
    """The whole step's inputs, the same on every process."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(rows, *((5, 16) if kind is Net else (16,)), generator=generator)


def loss_of(output):
    return output.square().mean()


def train(model, run, parts_of, weights_of=None):
    """Some steps, each of micro-batches; masks by step and micro-batch, the losses, and the final weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run.attach(optimizer)
    kept, losses = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in parts_of(batch(step)):
            with Masks() as record:
                loss = loss_of(model(part)) / MICRO
            kept.append([whole(mask) for mask in record.kept])
            losses.append(loss.detach())
            loss.backward()
        optimizer.step()
    weights = {name: whole(p.detach()) for name, p in (weights_of or model).named_parameters()}
    return {"masks": kept, "losses": torch.stack([whole(one) for one in losses]), "weights": weights}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def mine(x):
    """This process's rows of each micro-batch."""
    return [part.chunk(dist.get_world_size())[dist.get_rank()] for part in x.chunk(MICRO)]


def ddp():
    model = net()
    run = puredrop.reproducible(model, SEED, dp_group=dist.group.WORLD)
    return train(DistributedDataParallel(model), run, mine, model)


def ddp_wrapped_first():
    model = DistributedDataParallel(net())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(model, puredrop.reproducible(model, SEED), mine, model.module)
    said = [str(one.message) for one in caught if "takes its place" in str(one.message)]
    return {**found, "said": said}


def ddp_named():
    """Unequal batches, in another order: samples have names."""
    model = net()
    run = puredrop.reproducible(model, SEED)
    x = batch(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    ids = order.split([5, len(x) - 5])[dist.get_rank()]
    run.sample_ids = ids
    with Masks() as record:
        DistributedDataParallel(model)(x[ids])
    return {"masks": [record.kept], "ids": ids}


def ddp_unequal():
    return refused_step([4 + dist.get_rank()])


def ddp_another_order():
    """As many samples on each rank, in forwards of other sizes."""
    return refused_step([4, 6] if dist.get_rank() else [6, 4])


def refused_step(sizes):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    puredrop.reproducible(model, SEED, dp_group=dist.group.WORLD).attach(optimizer)
    before = model.head.weight.detach().clone()
    for size in sizes:
        loss_of(model(batch(0)[:size])).backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        return {"error": str(error), "unchanged": torch.equal(before, model.head.weight)}
    return {}


def ddp_sampler():
    """Rows dealt by torch's DistributedSampler: sample i on rank i mod size."""
    model = net()
    run = puredrop.reproducible(model, SEED, dp_group=dist.group.WORLD, sharding="rows")
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = lambda x: [part[rank::size] for part in x.chunk(MICRO)]  # noqa: E731
    return train(DistributedDataParallel(model), run, parts, model)


def fsdp():
    model = net()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    run = puredrop.reproducible(model, SEED, dp_group=dist.group.WORLD)
    return train(model, run, mine)


def parallel_mlp(mesh, use_local_output):
    model = net(MLP)
    styles = {"first": ColwiseParallel(use_local_output=use_local_output), "last": RowwiseParallel()}
    parallelize_module(model, mesh, styles)
    return model


def tensor_parallel():
    """DTensors between the parallel layers: sharded activations, and replicated ones after the second."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    model = parallel_mlp(mesh, use_local_output=False)
    model.last = nn.Sequential()  # below, with its output kept a DTensor
    model.last = parallel_last(mesh)
    run = puredrop.reproducible(model, SEED)
    return forwards(model, run)


def parallel_last(mesh):
    styles = {"last": RowwiseParallel(use_local_output=False)}
    return parallelize_module(net(MLP), mesh, styles).last


def forwards(model, run):
    """Two micro-batches of one step, forward and backward."""
    kept, outputs = [], []
    for part in batch(0, MLP).chunk(MICRO):
        with Masks() as record:
            output = model(part)
        kept.append([whole(mask) for mask in record.kept])
        outputs.append(whole(output))
        outputs[-1].square().sum().backward()
    run.advance()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
    return {"masks": kept, "outputs": torch.cat(outputs).detach(), "weights": gradients}


def tensor_parallel_local():
    """Plain tensors between the layers, as torch's styles have it by default: windows are given."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    model = parallel_mlp(mesh, use_local_output=True)
    found = {}
    for name, windows in (("none", None), ("named", {"drop": lambda x: part_of(x, rank, size)})):
        with puredrop.reproducible(model, SEED, windows=windows) as run:
            try:
                found[name] = forwards(model, run)
            except ValueError as error:
                found[name] = str(error)
    return found


def part_of(x, rank, size):
    return puredrop.Window((x.shape[0], size * x.shape[1]), (0, rank * x.shape[1]))


def sequence_parallel():
    """LayerNorm and dropout on a sequence that is cut over the processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    model = nn.Sequential(nn.LayerNorm(16), puredrop.nn.Dropout(0.4), puredrop.nn.GaussianDropout(0.3))
    parallelize_module(model, mesh, {"0": SequenceParallel(), "1": SequenceParallel(), "2": SequenceParallel()})
    puredrop.reproducible(model, SEED)
    x = batch(0)[:, :4]
    with Masks() as record:
        output = model(distribute_tensor(x, mesh, [Shard(1)]))
    assert output.placements == (Shard(1),)
    return {"masks": [[whole(mask) for mask in record.kept]], "outputs": whole(output).detach()}


def two_dimensions():
    """Data parallel in one dimension of the mesh, tensor parallel in the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = parallel_mlp(mesh["tp"], use_local_output=False)
    refused = [refusal(model)]
    fully_shard(model, mesh=mesh["dp"])
    refused.append(refusal(model))
    run = puredrop.reproducible(model, SEED, mesh=mesh["dp"])
    kept = []
    for part in batch(0, MLP).chunk(MICRO):
        with Masks() as record:
            model(part.chunk(2)[mesh["dp"].get_local_rank()])
        kept.append([whole(mask) for mask in record.kept])
    run.advance()
    return {"masks": kept, "refused": refused, "dp": mesh["dp"].get_local_rank()}


def refusal(model):
    with puredrop.reproducible(model, SEED):
        try:
            model(batch(0, MLP))
        except ValueError as error:
            return str(error)
    return None


def spread_batch():
    """The whole batch as one DTensor: its place is in its spec."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    model = nn.Sequential(puredrop.nn.Dropout(0.4), nn.Tanh(), puredrop.nn.DropPath(0.5), nn.Dropout(0.2))
    run = puredrop.reproducible(model, SEED, mesh=mesh)
    kept = []
    for part in batch(0, MLP).chunk(MICRO):
        with Masks() as record:
            model(distribute_tensor(part, mesh, [Shard(0) if len(kept) == 0 else Replicate()]))
        kept.append([whole(mask) for mask in record.kept])
    run.advance()
    return {"masks": kept}


def elastic(folder, steps=40, rows=16):
    """Train to a number of steps on any number of processes, going on where the last one was killed."""
    from safetensors.torch import load_file, save_file

    rank, size = dist.get_rank(), dist.get_world_size()
    model = net(MLP)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = puredrop.reproducible(model, SEED, dp_group=dist.group.WORLD).attach(optimizer)
    state = folder / "state.safetensors"
    if state.exists():
        weights = load_file(state)
        run.load_state_dict(json.loads((folder / f"run-{int(weights.pop('step'))}.json").read_text()))
        model.load_state_dict(weights)
    parallel = DistributedDataParallel(model)
    while run.step < steps:
        x = batch(run.step, MLP, rows)
        with Masks() as record:
            loss = loss_of(parallel(x.chunk(size)[rank]))
        optimizer.zero_grad()
        loss.backward()
        step = run.step
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        seen = folder / f"seen-{step}-{rank}-{size}.pt"
        torch.save({"masks": record.kept, "loss": total / size}, seen.with_suffix(".part"))
        seen.with_suffix(".part").rename(seen)  # a kill leaves whole files
        dist.barrier()  # a step that is saved has been seen by all
        if rank == 0:
            (folder / "next.json").write_text(json.dumps(run.state_dict()))
            (folder / "next.json").rename(folder / f"run-{run.step}.json")
            kept = {**model.state_dict(), "step": torch.tensor(run.step)}
            save_file(kept, folder / "next.safetensors")
            (folder / "next.safetensors").rename(state)
        dist.barrier()
    return {"weights": dict(model.state_dict())}


class Rows(torch.utils.data.Dataset):
    """What the libraries' loops train on."""

    def __init__(self):
        self.x = batch(0, MLP, 48)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.x[i].sum()}


class ForTrainer(nn.Module):
    """A model as Hugging Face's Trainer calls one."""

    def __init__(self):
        super().__init__()
        self.net = net(MLP)

    def forward(self, x, labels):
        output = self.net(x).sum(1)
        return {"loss": (output - labels).square().mean(), "logits": output}


def hugging_face(folder, rows_at_once=4, resume=False, **named):
    """Two micro-batches a step, stopped and resumed in the middle if asked to."""
    from transformers import Trainer, TrainingArguments

    from puredrop.callbacks.hugging_face import Reproducible

    def trainer(**more):
        arguments = TrainingArguments(
            output_dir=str(folder / "hf"),
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_num_workers=0,
            **more,
        )
        return Trainer(model, arguments, train_dataset=Rows(), callbacks=[Reproducible(SEED)])

    model = ForTrainer()
    with Masks() as record:
        if resume:
            trainer(max_steps=2, save_steps=2).train()
            model = ForTrainer()
            trainer(save_strategy="no").train(resume_from_checkpoint=str(folder / "hf" / "checkpoint-2"))
        else:
            trainer(save_strategy="no").train()
    pairs = zip(record.kept[::2], record.kept[1::2], strict=True)  # a forward has two masks
    return {"masks": [list(pair) for pair in pairs], "weights": dict(model.state_dict())}


def lightning(folder, rows_at_once=4):
    """The module's training_step calls a part of it, not the module."""
    import lightning.pytorch as pl

    from puredrop.callbacks.lightning import Reproducible

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net(MLP)

        def training_step(self, rows, index):
            return (self.net(rows["x"]).sum(1) - rows["labels"]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size() if dist.is_initialized() else 1,
        strategy="ddp" if dist.is_initialized() else "auto",
        max_epochs=2,
        accumulate_grad_batches=2,
        enable_model_summary=False,
        use_distributed_sampler=False,  # which would shuffle, and with one process it would not
        callbacks=[Reproducible(SEED)],
        **quiet,
    )
    with Masks() as record:
        rows = Rows()
        sampler = torch.utils.data.DistributedSampler(rows, shuffle=False) if dist.is_initialized() else None
        trainer.fit(module, torch.utils.data.DataLoader(rows, rows_at_once, sampler=sampler))
    pairs = zip(record.kept[::2], record.kept[1::2], strict=True)
    return {"masks": [list(pair) for pair in pairs], "weights": dict(module.net.state_dict())}


def main(folder, *cases):
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
    dist.init_process_group("gloo")
    for case in cases:
        function = globals()[case]
        found = function(Path(folder)) if case in ("elastic", "hugging_face", "lightning") else function()
        torch.save(found, Path(folder) / f"{case}-{dist.get_rank()}.pt")
        dist.barrier()
    os._exit(0)  # gloo aborts a process now and then that takes itself down in order


if __name__ == "__main__":
    main(*sys.argv[1:])
