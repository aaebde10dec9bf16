"""Watched trainings by other libraries' loops; `trainers.py FOLDER CASE...` by torchrun writes each rank's report."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from loops import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from puredrop import WatchWarning, watch

MISTAKES = ("none", "training", "evaluation", "callback")


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.x[i].sum()}


class Stubborn(Net):
    """A network that can be held in one mode, as by a library that patches `train`."""

    mode = None

    def train(self, mode=True):
        return super().train(mode if self.mode is None else self.mode)


class ForTrainer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Stubborn()

    def forward(self, x, labels):
        output = self.net(x).sum(1)
        return {"loss": (output - labels).square().mean(), "logits": output}


def is_wrong_here():
    """The last rank is the one that goes wrong."""
    return not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1


def apply(mistake, net, step, x):
    """What a user's callback does after a step."""
    if step != 2 or not is_wrong_here():
        return
    if mistake in ("training", "evaluation"):
        net.mode = mistake == "evaluation"
        net.train(net.mode)
    elif mistake == "callback":
        net.train()
        with torch.no_grad():
            net(x)


def hugging_face(folder, mistake="none", strict=False):
    """Evaluates after every second step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from puredrop.callbacks.hugging_face import WatchCallback

    class User(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            apply(mistake, model.net, state.global_step, Rows().x)
            if mistake == "callback" and state.global_step == 2 and is_wrong_here():
                with torch.no_grad():
                    model(Rows().x, Rows().x.sum(1))

    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback, model = WatchCallback(strict=strict), ForTrainer()
    Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback, User()]).train()
    assert not model._forward_pre_hooks
    return callback.report


def lightning(folder, mistake="none", strict=False):
    """The module's training_step calls a part of it, not the module."""
    import lightning.pytorch as pl

    from puredrop.callbacks.lightning import WatchCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Stubborn()

        def training_step(self, rows, index):
            return (self.net(rows["x"]).sum(1) - rows["labels"]).square().mean()

        def validation_step(self, rows, index):
            self.net(rows["x"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class User(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            apply(mistake, pl_module.net, trainer.global_step, Rows().x)

        def on_validation_start(self, trainer, pl_module):
            if mistake == "callback" and trainer.global_step >= 2 and is_wrong_here():
                pl_module.train()

    callback, module = WatchCallback(strict=strict), Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size() if dist.is_initialized() else 1,
        strategy="ddp" if dist.is_initialized() else "auto",
        max_epochs=2,
        max_steps=6,
        accumulate_grad_batches=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        enable_model_summary=False,
        callbacks=[callback, User()],
        **quiet,
    )
    batches = torch.utils.data.DataLoader(Rows(), 4)
    trainer.fit(module, batches, batches)
    assert not module._forward_pre_hooks
    return callback.report


def ddp(folder, mistake="none"):
    """A loop of the user's own."""
    net = Stubborn()
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, optimizer)
    x = Rows().x
    for step in range(4):
        model.train()
        model(x).square().mean().backward()
        optimizer.step()
        apply(mistake, net, step, x)
        net.eval()
        with torch.no_grad():
            model(x)
    return watched.report


def main(folder, *cases):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in cases:
        function, mistake = case.split("-")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = globals()[function](Path(folder), mistake)
        said = [str(one.message) for one in caught if issubclass(one.category, WatchWarning)]
        text = json.dumps({**report.to_dict(), "said": said})
        (Path(folder) / f"{case}-{dist.get_rank()}.json").write_text(text)
        dist.barrier()
    os._exit(0)  # gloo aborts a process now and then that takes itself down in order


if __name__ == "__main__":
    main(*sys.argv[1:])
