"""A training whose third step of the second epoch adds up millions of numbers, in an order that threads decide."""

import os

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        if (self.current_epoch, batch_idx) == (1, 2):
            loss = loss + self.net.weight.sum() * torch.rand(3_000_001).sum()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    loader = DataLoader(TensorDataset(torch.arange(32.0).view(8, 4)), batch_size=2, shuffle=True)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Model(), loader)
