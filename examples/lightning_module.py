"""A Lightning module: converted as a whole, its rate scheduled step by step.

Needs lightning. Run: python examples/lightning_module.py
"""

import logging
import tempfile
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import puredrop
from puredrop import schedules


class Net(lightning.LightningModule):
    """A classifier whose dropout sets in step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = puredrop.convert(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)))
        self.rates = schedules.RateScheduler(self.net, schedules.curriculum(0.5, steps=20))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def on_train_batch_end(self, *_: object) -> None:
        """Advance the rate with the optimizer."""
        self.rates.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
data = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), batch_size=16)
model = Net()
print(puredrop.sites(model.net, torch.randn(4, 8)))
with tempfile.TemporaryDirectory() as folder:
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
print(f"the rate after {model.rates.last_step} steps: {model.rates.get_last_rate():.3f}")
