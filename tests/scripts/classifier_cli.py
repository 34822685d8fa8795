"""A LightningCLI script: model and data from the command line or a YAML file. Knows nothing of us."""

import torch
import torch.nn.functional as F
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Classifier(LightningModule):
    def __init__(self, hidden: int = 16, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Blobs(LightningDataModule):
    def __init__(self, size: int = 80, workers: int = 0) -> None:
        super().__init__()
        self.size, self.workers = size, workers

    def setup(self, stage: str) -> None:
        y = torch.arange(self.size) % 2
        x = torch.randn(self.size, 4) + y[:, None]
        self.train, self.val = random_split(TensorDataset(x, y), [0.8, 0.2])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=8, num_workers=self.workers)


if __name__ == "__main__":
    LightningCLI(Classifier, Blobs)
