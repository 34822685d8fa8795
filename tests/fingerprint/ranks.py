"""A training on one or two processes, started by test_structure.py: python ranks.py FOLDER DEVICES [FAULT]."""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repro_callbacks import Determinism, Fingerprint


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class SeedsARank(L.Callback):
    """Gives rank 1 another seed at one step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and (trainer.current_epoch, batch_idx) == (1, 1):
            torch.manual_seed(99)


class FlipsInARank(L.Callback):
    """Flips a bit of rank 1's batch at one step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: list[torch.Tensor], batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and (trainer.current_epoch, batch_idx) == (1, 1):
            batch[0].view(-1).view(torch.int32)[0] ^= 1 << 20


def main(folder: Path, devices: int, fault: str = "") -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    keyed = [] if fault == "seed" else [Determinism(3, deterministic=False, log=False)]
    faults: list[L.Callback] = {"seed": [SeedsARank()], "flip": [FlipsInARank()]}.get(fault, [])
    if fault == "plain":
        keyed = []
    data = TensorDataset(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[*keyed, *faults, Fingerprint(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(data, 8 // devices, shuffle=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
